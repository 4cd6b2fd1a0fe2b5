// Products with float activations on tiles, for ARM. The unit has included its lanes.
#pragma once
#include "matmul_tiles.h"

namespace paceline {
namespace {

// Weights of 16 columns and `step` consecutive k.
template <Kind kind> struct Weights {
    static constexpr std::size_t step = kind == Kind::codes4 ? 8 : kind == Kind::codes8 ? 4 : 1;
    static constexpr std::size_t bytes = kind == Kind::half || kind == Kind::bfloat ? 32 : 64;
    Ints raw;

    explicit PACELINE_INLINE Weights(const std::uint8_t *from) {
        const auto *halves = reinterpret_cast<const std::uint16_t *>(from);
        if constexpr (kind == Kind::half)
            raw = bits_of(load_half(halves));
        else if constexpr (kind == Kind::bfloat)
            raw = bits_of(load_bfloat(halves));
        else if constexpr (kind == Kind::single)
            raw = bits_of(load(reinterpret_cast<const float *>(from)));
        else
            raw = {flipped(from), flipped(from + 16), flipped(from + 32), flipped(from + 48)};
    }

    // The flipped top bit of each code subtracts the zero point: the code is then a signed number.
    static PACELINE_INLINE int32x4_t flipped(const std::uint8_t *from) {
        const uint8x16_t top = vdupq_n_u8(kind == Kind::codes4 ? 0x88 : 0x80);
        return vreinterpretq_s32_u8(veorq_u8(vld1q_u8(from), top));
    }

    // Number i of the step: in 4 bits, the low halves of the bytes come first.
    template <int i> PACELINE_INLINE Lanes at() const {
        if constexpr (kind == Kind::codes4)
            return to_float(shift_right<28>(shift_left < i<4 ? 28 - 8 * i : 24 - 8 * (i - 4)>(raw)));
        else if constexpr (kind == Kind::codes8)
            return to_float(shift_right<24>(shift_left<24 - 8 * i>(raw)));
        else
            return of_bits(raw);
    }
};

// Sums of `rows` rows in `tiles` tiles. Each is one chain of fma: with few rows, several tiles hide its
// latency.
template <Kind kind, int rows, int tiles> struct ExactSums {
    Lanes s[tiles][rows];

    PACELINE_INLINE void clear() {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t) {
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                s[t][r] = zero();
        }
    }

    PACELINE_INLINE void step(const std::uint8_t *weights, std::size_t tile_bytes, const float *x) {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t)
            add_from<0>(t, Weights<kind>(weights + static_cast<std::size_t>(t) * tile_bytes), x);
    }

    template <int i> PACELINE_INLINE void add_from(int t, const Weights<kind> &w, const float *x) {
        if constexpr (i < static_cast<int>(Weights<kind>::step)) {
            const Lanes column = w.template at<i>();
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                s[t][r] = fma(column, set1(x[i * rows + r]), s[t][r]);
            add_from<i + 1>(t, w, x);
        }
    }
};

template <Kind kind, int rows, int tiles> void multiply_exact_tiles(const TileRun &run, std::size_t index) {
    using Read = Weights<kind>;
    constexpr bool coded = kind == Kind::codes4 || kind == Kind::codes8;
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = coded ? w.blocks() : 1, reads = (coded ? w.block : w.k) / Read::step;
    const std::size_t tile = run.first + index, tile_bytes = w.tile_bytes();
    const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * tile_bytes;
    const float *x = run.group->x;
    float *out = run.out + index * rows * tile_columns;
    for (std::size_t i = 0; i < tiles * rows; ++i)
        store(out + i * tile_columns, zero());
    ExactSums<kind, rows, tiles> sums;
    for (std::size_t b = 0; b < blocks; ++b) {
        sums.clear();
        for (std::size_t i = 0; i < reads; ++i) {
            sums.step(weights, tile_bytes, x);
            weights += Read::bytes;
            x += Read::step * rows;
        }
        for (int t = 0; t < tiles; ++t) {
            for (int r = 0; r < rows; ++r) {
                float *at = out + static_cast<std::size_t>(t * rows + r) * tile_columns;
                if constexpr (coded) {
                    const std::size_t scales =
                        ((tile + static_cast<std::size_t>(t)) * blocks + b) * tile_columns;
                    store(at, fma(sums.s[t][r], load_half(w.scales + scales), load(at)));
                } else {
                    store(at, sums.s[t][r]);
                }
            }
        }
    }
}

template <Kind kind, int rows> void multiply_exact_rows(const TileRun &run) {
    constexpr int tiles = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    std::size_t i = 0;
    for (; i + tiles <= run.count; i += tiles)
        multiply_exact_tiles<kind, rows, tiles>(run, i);
    for (; i < run.count; ++i)
        multiply_exact_tiles<kind, rows, 1>(run, i);
}

constexpr std::size_t most_exact_rows = 4; // 16 sums, the columns and what unpacks them

template <Kind kind> void multiply_exact_kind(const TileRun &run) {
    static constexpr void (*by_rows[most_exact_rows])(const TileRun &) = {
        multiply_exact_rows<kind, 1>, multiply_exact_rows<kind, 2>, multiply_exact_rows<kind, 3>,
        multiply_exact_rows<kind, 4>};
    by_rows[run.group->rows - 1](run);
}

void multiply_exact(const TileRun &run) {
    switch (run.w->kind) {
    case Kind::codes4:
        return multiply_exact_kind<Kind::codes4>(run);
    case Kind::codes8:
        return multiply_exact_kind<Kind::codes8>(run);
    case Kind::half:
        return multiply_exact_kind<Kind::half>(run);
    case Kind::bfloat:
        return multiply_exact_kind<Kind::bfloat>(run);
    case Kind::single:
        return multiply_exact_kind<Kind::single>(run);
    }
}

} // namespace
} // namespace paceline
