// Products with a packed matrix: y = activation(norm(x) W + bias) + residual, each row by itself.
#pragma once
#include "pool.h"
#include <cstddef>
#include <cstdint>

namespace paceline {

enum class Kind { codes4, codes8, half, bfloat, single };
enum class Activation { none, silu, gelu, gelu_tanh };

// W[k, n] in tiles of 16 columns. codes: zero point 8 or 128, float16 scales [tiles, blocks, 16]; `block`
// divides padded K. half, bfloat, single: [tiles, k, 16], no scales, block 0.
struct PackedMatrix {
    std::size_t k, n;
    Kind kind;
    std::size_t block;
    const void *weights;
    const std::uint16_t *scales;

    std::size_t tiles() const { return (n + 15) / 16; }
    std::size_t blocks() const { return block == 0 ? 0 : (k + block - 1) / block; }
    std::size_t padded_k() const { return block == 0 ? k : blocks() * block; }
    std::size_t tile_bytes() const {
        switch (kind) {
        case Kind::codes4:
            return padded_k() * 8;
        case Kind::codes8:
            return padded_k() * 16;
        case Kind::single:
            return padded_k() * 64;
        default:
            return padded_k() * 32;
        }
    }
};

// Optional pointers are null. With an activation other than none, W has the gate in its first n/2 columns and
// up in the rest, and y and residual have n/2 columns; otherwise n. `exact` keeps activations in float32.
struct MatMul {
    const float *x; // [rows, k]
    std::size_t rows;
    PackedMatrix w;
    const float *norm; // [k]: RMS norm of each row of x first
    float epsilon;
    const float *bias;     // [n]
    const float *residual; // [rows, n or n/2]
    Activation activation;
    bool exact;
    float *y; // [rows, n or n/2]
};

void matmul(const MatMul &call, const Pool &pool);

// Rows of the table whose columns are packed in `w`: out[i, :] = W[:, ids[i]]. The ids were checked.
void embed(const std::int64_t *ids, std::size_t count, const PackedMatrix &w, float *out);

} // namespace paceline
