// Products with a packed matrix: y = activation(norm(x) W + bias) + residual, each row by itself.
#pragma once
#include "pool.h"
#include <cstddef>
#include <cstdint>

namespace paceline {

enum class Kind { codes4, codes5, codes6, codes8, half, bfloat, single };
constexpr bool coded(Kind kind) { return kind <= Kind::codes8; }
constexpr unsigned bits_in(Kind kind) {
    return kind == Kind::codes4   ? 4
           : kind == Kind::codes5 ? 5
           : kind == Kind::codes6 ? 6
           : kind == Kind::codes8 ? 8
           : kind == Kind::single ? 32
                                  : 16;
}
enum class Activation { none, silu, gelu, gelu_tanh };

// W[k, n] in tiles of 16 columns. codes: float16 scales [tiles, blocks, 16] and half of the codes' range as
// their zero point, or (`minima`, not with codes8) scales [tiles, blocks, 32], the minima behind, and no zero
// point; `block` divides padded K. half, bfloat, single: [tiles, k, 16], no scales, block 0.
struct PackedMatrix {
    std::size_t k, n;
    Kind kind;
    std::size_t block;
    const void *weights;
    const std::uint16_t *scales;
    bool minima;

    std::size_t tiles() const { return (n + 15) / 16; }
    std::size_t blocks() const { return block == 0 ? 0 : (k + block - 1) / block; }
    std::size_t padded_k() const { return block == 0 ? k : blocks() * block; }
    std::size_t tile_bytes() const { return padded_k() * 2 * bits_in(kind); }
    std::int32_t zero_point() const { return minima ? 0 : 1 << (bits_in(kind) - 1); } // of codes
    std::size_t scale_line() const { return minima ? 32 : 16; } // halves of a block of a tile
    const std::uint16_t *scales_of(std::size_t tile) const { return scales + tile * blocks() * scale_line(); }
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
