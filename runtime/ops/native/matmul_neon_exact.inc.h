// Products with float activations on tiles, for ARM. The unit has included its lanes.
#pragma once
#include "matmul_tiles.h"
#include "matmul_unit.h"

namespace paceline {
namespace {

// Codes of 16 columns minus their zero point, a unit at a time.
template <Kind kind> struct Weights {
    static constexpr std::size_t step = Unit<kind>::k, bytes = Unit<kind>::bytes; // a read: numbers of k
    const std::uint8_t *from;
    Lanes zero;

    template <int i> PACELINE_INLINE Lanes at() const {
        const Ints quad{part<i / 4>(0), part<i / 4>(16), part<i / 4>(32), part<i / 4>(48)};
        // A byte is below 128 with less than 8 bits: then shifting back keeps no sign.
        return sub(to_float(shift_right<24>(shift_left<24 - 8 * (i % 4)>(quad))), zero);
    }

    // 4 columns of a quad. With 8 bits the flipped top bit subtracts the zero point.
    template <int quad> PACELINE_INLINE int32x4_t part(std::size_t column) const {
        if constexpr (kind == Kind::codes8) {
            return vreinterpretq_s32_u8(veorq_u8(vld1q_u8(from + column), vdupq_n_u8(128)));
        } else {
            constexpr int more = Unit<kind>::more, at = 4 - quad * more; // to the left
            const uint8x16_t raw = vld1q_u8(from + Unit<kind>::first + quad / 2 * 64 + column);
            uint8x16_t codes = quad % 2 == 0 ? vandq_u8(raw, vdupq_n_u8(15)) : vshrq_n_u8(raw, 4);
            if constexpr (more != 0)
                codes = vorrq_u8(codes, vandq_u8(vshlq_u8(vld1q_u8(from + column), vdupq_n_s8(at)),
                                                 vdupq_n_u8(((1 << more) - 1) << 4)));
            return vreinterpretq_s32_u8(codes);
        }
    }
};

// Numbers that are floats already.
template <Kind kind> struct Floats {
    static constexpr std::size_t step = 1, bytes = kind == Kind::single ? 64 : 32;
    const std::uint8_t *from;
    Lanes zero;

    template <int i> PACELINE_INLINE Lanes at() const {
        const auto *halves = reinterpret_cast<const std::uint16_t *>(from);
        if constexpr (kind == Kind::half)
            return load_half(halves);
        else if constexpr (kind == Kind::bfloat)
            return load_bfloat(halves);
        else
            return load(reinterpret_cast<const float *>(from));
    }
};
template <> struct Weights<Kind::half> : Floats<Kind::half> {};
template <> struct Weights<Kind::bfloat> : Floats<Kind::bfloat> {};
template <> struct Weights<Kind::single> : Floats<Kind::single> {};

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

    PACELINE_INLINE void step(const std::uint8_t *weights, std::size_t tile_bytes, const float *x,
                              Lanes zero) {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t)
            add_from<0>(t, Weights<kind>{weights + static_cast<std::size_t>(t) * tile_bytes, zero}, x);
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
    constexpr bool codes = coded(kind);
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = codes ? w.blocks() : 1, reads = (codes ? w.block : w.k) / Read::step;
    const Lanes zero_point = set1(codes && kind != Kind::codes8 ? static_cast<float>(w.zero_point()) : 0.0f);
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
            sums.step(weights, tile_bytes, x, zero_point);
            weights += Read::bytes;
            x += Read::step * rows;
        }
        for (int t = 0; t < tiles; ++t) {
            for (int r = 0; r < rows; ++r) {
                float *at = out + static_cast<std::size_t>(t * rows + r) * tile_columns;
                if constexpr (codes) {
                    const std::uint16_t *scales =
                        w.scales_of(tile + static_cast<std::size_t>(t)) + b * w.scale_line();
                    store(at, fma(sums.s[t][r], load_half(scales), load(at)));
                    if (w.minima)
                        store(at, fma(load_half(scales + tile_columns), set1(run.group->sums[b * rows + r]),
                                      load(at)));
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

} // namespace
} // namespace paceline
