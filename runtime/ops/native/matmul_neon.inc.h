// Products with int8 activations on tiles, for ARM: the walk over a tile, and one way to do a block, with the
// dot product instructions. matmul_i8mm.cpp has the other way. The unit has included its lanes.
#pragma once
#include "matmul_tiles.h"
#include "matmul_unit.h"

namespace paceline {
namespace {

// Weights of 4 columns, for the quads 2 i and 2 i + 1 of some units: signed bytes, column by column.
// Up to 6 bits: the codes, and the sums start at minus the zero point. 8 bits: the flipped top bit subtracts
// it.
template <Kind kind> struct Columns {
    static constexpr int steps = Unit<kind>::quads < 2 ? 1 : Unit<kind>::quads / 2; // of 8 k, in `bytes`
    static constexpr std::size_t bytes = Unit<kind>::bytes * (Unit<kind>::quads < 2 ? 2 : 1);
    int8x16_t quad_0, quad_1;

    PACELINE_INLINE Columns(const std::uint8_t *from, int i) {
        constexpr int more = Unit<kind>::more;
        if constexpr (kind == Kind::codes8) {
            const uint8x16_t top = vdupq_n_u8(128);
            quad_0 = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from), top));
            quad_1 = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from + 64), top));
        } else {
            const uint8x16_t raw = vld1q_u8(from + Unit<kind>::first + 64 * i);
            uint8x16_t low = vandq_u8(raw, vdupq_n_u8(15)), high = vshrq_n_u8(raw, 4);
            if constexpr (more != 0) {
                const uint8x16_t upper = vld1q_u8(from), mask = vdupq_n_u8(((1 << more) - 1) << 4);
                const int at = 4 - 2 * i * more; // to the left
                low =
                    vorrq_u8(low, vandq_u8(vshlq_u8(upper, vdupq_n_s8(static_cast<std::int8_t>(at))), mask));
                high = vorrq_u8(
                    high, vandq_u8(vshlq_u8(upper, vdupq_n_s8(static_cast<std::int8_t>(at - more))), mask));
            }
            quad_0 = vreinterpretq_s8_u8(low);
            quad_1 = vreinterpretq_s8_u8(high);
        }
    }
};

// Two quads of each row, as the codes stand in memory: quad 0 of all rows, then quad 1.
template <int rows> struct RowQuads {
    static constexpr std::size_t bytes = 8 * rows;
    int8x16_t v[(rows + 1) / 2];

    explicit PACELINE_INLINE RowQuads(const std::int8_t *from) {
        PACELINE_UNROLL
        for (int i = 0; i < rows / 2; ++i)
            v[i] = vld1q_s8(from + 16 * i);
        if constexpr (rows % 2 == 1)
            v[rows / 2] = vcombine_s8(vld1_s8(from + 16 * (rows / 2)), vdup_n_s8(0));
    }

    template <int quad> PACELINE_INLINE int32x4_t dot(int32x4_t sum, int8x16_t columns) const {
        return vdotq_laneq_s32(sum, columns, v[quad / 4], quad % 4);
    }
};

// Groups of 4 columns whose sums are in progress together: a whole tile, or half of it so that the sums of
// more rows fit into the 32 registers.
constexpr int groups_for(int rows) { return rows <= 4 ? 4 : 2; }

constexpr std::size_t most_rows_here = 8;

// One block in progress: sums of `rows` rows and 4 columns for each group. With few rows there are two sums
// for each, which hides the latency; integer sums do not depend on the order.
template <Kind kind_, int rows_> struct DotBlock {
    static constexpr Kind kind = kind_;
    static constexpr int rows = rows_, groups = groups_for(rows), sets = rows <= 2 ? 2 : 1;
    using Rows = RowQuads<rows>;
    int32x4_t s[sets][rows][groups];

    PACELINE_INLINE void start(const std::int32_t *starts) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r) {
            PACELINE_UNROLL
            for (int g = 0; g < groups; ++g) {
                s[sets - 1][r][g] = vdupq_n_s32(0);
                s[0][r][g] = vdupq_n_s32(kind == Kind::codes8 ? 0 : starts[r]);
            }
        }
    }

    PACELINE_INLINE void add(int g, const Columns<kind> &columns, const Rows &codes) {
        add_from<0>(g, columns, codes);
    }

    template <int r> PACELINE_INLINE void add_from(int g, const Columns<kind> &columns, const Rows &codes) {
        if constexpr (r < rows) {
            s[0][r][g] = codes.template dot<r>(s[0][r][g], columns.quad_0);
            s[sets - 1][r][g] = codes.template dot<rows + r>(s[sets - 1][r][g], columns.quad_1);
            add_from<r + 1>(g, columns, codes);
        }
    }

    PACELINE_INLINE float32x4_t total(int r, int g) const {
        return vcvtq_f32_s32(sets == 1 ? s[0][r][g] : vaddq_s32(s[0][r][g], s[sets - 1][r][g]));
    }
};

// Some groups of one tile; `weights`, `scales` and `out` point at the first of them. The prefetch hints of
// the run are not used: nothing could be measured yet on the machines that this is for.
template <class Block>
void multiply_groups(const PackedMatrix &w, const Group &group, const std::uint8_t *weights,
                     const std::uint16_t *scales, float *out) {
    using Read = Columns<Block::kind>;
    const std::size_t blocks = w.blocks(), reads = w.block / (8 * Read::steps), line = w.scale_line();
    const std::int8_t *codes = group.codes;
    for (std::size_t b = 0; b < blocks; ++b) {
        Block sums;
        sums.start(group.starts + b * Block::rows);
        for (std::size_t read = 0; read < reads; ++read) {
            PACELINE_UNROLL
            for (int i = 0; i < Read::steps; ++i) {
                const typename Block::Rows rows(codes);
                PACELINE_UNROLL
                for (int g = 0; g < Block::groups; ++g)
                    sums.add(g, Read(weights + 16 * g, i), rows);
                codes += Block::Rows::bytes;
            }
            weights += Read::bytes;
        }
        PACELINE_UNROLL
        for (int g = 0; g < Block::groups; ++g) {
            const float32x4_t scale = half_to_single(load_4(scales + b * line + 4 * g));
            const float32x4_t minimum = w.minima
                                            ? half_to_single(load_4(scales + b * line + tile_columns + 4 * g))
                                            : vdupq_n_f32(0.0f);
            PACELINE_UNROLL
            for (int r = 0; r < Block::rows; ++r) {
                float *at = out + static_cast<std::size_t>(r) * tile_columns + 4 * g;
                const float32x4_t both = vmulq_f32(scale, vdupq_n_f32(group.scales[b * Block::rows + r]));
                const float32x4_t acc = b == 0 ? vdupq_n_f32(0.0f) : vld1q_f32(at);
                float32x4_t sum = vfmaq_f32(acc, sums.total(r, g), both);
                if (w.minima)
                    sum = vfmaq_f32(sum, minimum, vdupq_n_f32(group.sums[b * Block::rows + r]));
                vst1q_f32(at, sum);
            }
        }
    }
}

template <class Block> void multiply_tiles(const TileRun &run) {
    const PackedMatrix &w = *run.w;
    for (std::size_t i = 0; i < run.count; ++i) {
        const std::size_t tile = run.first + i;
        const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * w.tile_bytes();
        const std::uint16_t *scales = w.scales_of(tile);
        float *out = run.out + i * Block::rows * tile_columns;
        for (int g = 0; g < 4; g += Block::groups)
            multiply_groups<Block>(w, *run.group, weights + 16 * g, scales + 4 * g, out + 4 * g);
    }
}

using Run = void (*)(const TileRun &);

} // namespace
} // namespace paceline
