// Products on tiles in plain C++: for any machine, and what the other instruction sets are compared with.
#include "lanes_portable.h"
#include "matmul_tiles.h"
#include "matmul_unit.h"

namespace paceline {
namespace {

std::size_t place(std::size_t quad, std::size_t row, std::size_t rows) { return quad * rows + row; }

const std::uint8_t *weights_of(const PackedMatrix &w, std::size_t tile) {
    return static_cast<const std::uint8_t *>(w.weights) + tile * w.tile_bytes();
}

template <Kind kind> void unpack_kind(const std::uint8_t *tile, std::size_t quad, std::uint8_t (&out)[64]) {
    using U = Unit<kind>;
    const std::uint8_t *unit = tile + quad / U::quads * U::bytes;
    for (std::size_t i = 0; i < 64; ++i)
        out[i] = static_cast<std::uint8_t>(U::code(unit, quad % U::quads, i));
}

// The quads of 16 columns: out[4 * column + i] = code of number 4 * quad + i of k.
void unpack(const PackedMatrix &w, const std::uint8_t *tile, std::size_t quad, std::uint8_t (&out)[64]) {
    switch (w.kind) {
    case Kind::codes4:
        return unpack_kind<Kind::codes4>(tile, quad, out);
    case Kind::codes5:
        return unpack_kind<Kind::codes5>(tile, quad, out);
    case Kind::codes6:
        return unpack_kind<Kind::codes6>(tile, quad, out);
    default:
        return unpack_kind<Kind::codes8>(tile, quad, out);
    }
}

// acc += minimum times what the block of the row sums up to
void add_minimum(const PackedMatrix &w, const std::uint16_t *scales, const Group &group, std::size_t block,
                 std::size_t row, float *acc) {
    if (w.minima)
        store(acc,
              fma(load_half(scales + tile_columns), set1(group.sums[block * group.rows + row]), load(acc)));
}

using Sums = std::int32_t[tile_columns];

// Unsigned, because a per-channel block may wrap on the way to a sum that fits.
void add_quad(const std::uint8_t (&codes)[64], const std::int8_t *x, Sums &sums) {
    for (std::size_t n = 0; n < tile_columns; ++n) {
        const std::int32_t four =
            codes[4 * n] * x[0] + codes[4 * n + 1] * x[1] + codes[4 * n + 2] * x[2] + codes[4 * n + 3] * x[3];
        sums[n] =
            static_cast<std::int32_t>(static_cast<std::uint32_t>(sums[n]) + static_cast<std::uint32_t>(four));
    }
}

void multiply_tile(const PackedMatrix &w, std::size_t tile, const Group &group, float *out) {
    const std::uint8_t *weights = weights_of(w, tile);
    Sums sums[most_rows];
    std::uint8_t codes[64];
    for (std::size_t r = 0; r < group.rows; ++r)
        store(out + r * tile_columns, zero());
    for (std::size_t b = 0; b < w.blocks(); ++b) {
        for (std::size_t r = 0; r < group.rows; ++r)
            store_ints(sums[r], set1_int(group.starts[b * group.rows + r]));
        for (std::size_t quad = b * w.block / 4; quad < (b + 1) * w.block / 4; ++quad) {
            unpack(w, weights, quad, codes);
            for (std::size_t r = 0; r < group.rows; ++r)
                add_quad(codes, group.codes + 4 * place(quad, r, group.rows), sums[r]);
        }
        const std::uint16_t *scales = w.scales_of(tile) + b * w.scale_line();
        const Lanes scale = load_half(scales);
        for (std::size_t r = 0; r < group.rows; ++r) {
            float *acc = out + r * tile_columns;
            const Lanes both = mul(scale, set1(group.scales[b * group.rows + r]));
            store(acc, fma(to_float(load_ints(sums[r])), both, load(acc)));
            add_minimum(w, scales, group, b, r, acc);
        }
    }
}

void multiply(const TileRun &run) {
    for (std::size_t i = 0; i < run.count; ++i)
        multiply_tile(*run.w, run.first + i, *run.group, run.out + i * run.group->rows * tile_columns);
}

// Number k of 16 columns, as floats without the scale.
Lanes weights_at(const PackedMatrix &w, const std::uint8_t *tile, std::size_t k) {
    const auto *halves = reinterpret_cast<const std::uint16_t *>(tile) + k * tile_columns;
    switch (w.kind) {
    case Kind::half:
        return load_half(halves);
    case Kind::bfloat:
        return load_bfloat(halves);
    case Kind::single:
        return load(reinterpret_cast<const float *>(tile) + k * tile_columns);
    default:
        break;
    }
    std::uint8_t codes[64];
    unpack(w, tile, k / 4, codes);
    Lanes out;
    for (std::size_t n = 0; n < tile_columns; ++n)
        out.v[n] = static_cast<float>(codes[4 * n + k % 4] - w.zero_point());
    return out;
}

void multiply_exact_tile(const PackedMatrix &w, std::size_t tile, const Group &group, float *out) {
    const std::uint8_t *weights = weights_of(w, tile);
    const std::size_t block = w.block == 0 ? w.k : w.block;
    Lanes sums[most_rows];
    for (std::size_t r = 0; r < group.rows; ++r)
        store(out + r * tile_columns, zero());
    for (std::size_t from = 0, b = 0; from < w.padded_k(); from += block, ++b) {
        for (std::size_t r = 0; r < group.rows; ++r)
            sums[r] = zero();
        for (std::size_t k = from; k < from + block; ++k) {
            const Lanes column = weights_at(w, weights, k);
            for (std::size_t r = 0; r < group.rows; ++r)
                sums[r] = fma(set1(group.x[k * group.rows + r]), column, sums[r]);
        }
        for (std::size_t r = 0; r < group.rows; ++r) {
            float *acc = out + r * tile_columns;
            if (w.block == 0) {
                store(acc, sums[r]);
            } else {
                const std::uint16_t *scales = w.scales_of(tile) + b * w.scale_line();
                store(acc, fma(sums[r], load_half(scales), load(acc)));
                add_minimum(w, scales, group, b, r, acc);
            }
        }
    }
}

void multiply_exact(const TileRun &run) {
    for (std::size_t i = 0; i < run.count; ++i)
        multiply_exact_tile(*run.w, run.first + i, *run.group, run.out + i * run.group->rows * tile_columns);
}

} // namespace
} // namespace paceline

#include "matmul_rows.inc.h"

namespace paceline {

const TileKernels portable_tiles = {8,      8,        place,          normalise, quantise,
                                    spread, multiply, multiply_exact, finish};

} // namespace paceline
