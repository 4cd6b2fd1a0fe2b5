// Products on tiles with registers of 256 bits: a row of a tile is two of them. Included by the units for
// AVX2 and AVX-VNNI, which differ in Block, the integer sums of one block; the unit has included
// lanes_avx2.h.
//
// template <Kind kind, int rows> struct Block {
//     static constexpr Reach reach; // see matmul_ahead.h
//     start(starts);                  // of each row
//     add<quad>(left, right, codes);  // columns 0 to 7 and 8 to 15 of quad number `quad` since the last
//     settle() settle<quads>();                // so many came, at most 8 Lanes total(row);
// };

namespace paceline {
namespace {

std::size_t place(std::size_t quad, std::size_t row, std::size_t rows) { return quad * rows + row; }

PACELINE_INLINE __m256i load_256(const std::uint8_t *from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
}

PACELINE_INLINE __m256i broadcast_quad(const std::int8_t *quad) {
    std::int32_t bytes;
    std::memcpy(&bytes, quad, 4);
    return _mm256_set1_epi32(bytes);
}

// Half of quad `quad` of a unit, as bytes; `unit` is 32 bytes further for the other half.
template <Kind kind, std::size_t quad> PACELINE_INLINE __m256i quad_of(const std::uint8_t *unit) {
    if constexpr (kind == Kind::codes8) {
        return load_256(unit);
    } else {
        constexpr int more = Unit<kind>::more, at = static_cast<int>(quad) * more; // where its upper bits are
        const __m256i both = load_256(unit + Unit<kind>::first + quad / 2 * 64);
        const __m256i low =
            _mm256_and_si256(quad % 2 == 0 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
        if constexpr (more == 0) {
            return low;
        } else {
            const __m256i upper = load_256(unit);
            const __m256i placed = at < 4 ? _mm256_slli_epi16(upper, at < 4 ? 4 - at : 0)
                                          : _mm256_srli_epi16(upper, at < 4 ? 0 : at - 4);
            return _mm256_or_si256(low, _mm256_and_si256(placed, _mm256_set1_epi8(((1 << more) - 1) << 4)));
        }
    }
}

// Quads 0 to count - 1 of some units in a row.
template <Kind kind, std::size_t count, int rows, std::size_t quad = 0, class Sums, class Hints>
PACELINE_INLINE void add_quads(Sums &sums, const std::uint8_t *weights, const std::int8_t *codes,
                               Hints &ahead) {
    if constexpr (quad < count) {
        using U = Unit<kind>;
        constexpr std::size_t inside = quad % U::quads;
        if constexpr (inside == 0 && U::first != 0)
            ahead.line();
        if constexpr (kind == Kind::codes8 || inside % 2 == 0)
            ahead.line();
        const std::uint8_t *unit = weights + quad / U::quads * U::bytes;
        sums.template add<quad>(quad_of<kind, inside>(unit), quad_of<kind, inside>(unit + 32),
                                codes + 4 * rows * quad);
        add_quads<kind, count, rows, quad + 1>(sums, weights, codes, ahead);
    }
}

// `fixed_block`: numbers in a block where that is known while compiling, else 0.
template <Kind kind, int rows, std::size_t fixed_block>
void multiply_tile(const TileRun &run, std::size_t index) {
    constexpr std::size_t unit = Unit<kind>::k, step = kind == Kind::codes4 || kind == Kind::codes5 ? 32 : 16;
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = w.blocks(), tile = run.first + index;
    const std::size_t block = fixed_block ? fixed_block : w.block;
    const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * w.tile_bytes();
    const std::uint16_t *scales = w.scales_of(tile);
    const std::int8_t *codes = run.group->codes;
    const bool minima = w.minima;
    Ahead<Block<kind, rows>::reach> ahead(run, index, weights);
    float *out = run.out + index * rows * tile_columns;
    Lanes acc[rows];
    PACELINE_UNROLL
    for (int r = 0; r < rows; ++r)
        acc[r] = zero();
    for (std::size_t b = 0; b < blocks; ++b) {
        Block<kind, rows> sums;
        sums.start(run.group->starts + b * rows);
        std::size_t k = 0;
        for (; k + step <= block; k += step) {
            add_quads<kind, step / 4, rows>(sums, weights, codes, ahead);
            sums.template settle<step / 4>();
            weights += step * 2 * bits_in(kind);
            codes += step * rows;
        }
        if constexpr (fixed_block == 0) {
            for (; k < block; k += unit) {
                add_quads<kind, unit / 4, rows>(sums, weights, codes, ahead);
                sums.template settle<unit / 4>();
                weights += unit * 2 * bits_in(kind);
                codes += unit * rows;
            }
        }
        const Lanes scale = load_half(scales);
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            acc[r] = fma(sums.total(r), mul(scale, set1(run.group->scales[b * rows + r])), acc[r]);
        if (kind != Kind::codes8 && minima) {
            const Lanes minimum = load_half(scales + tile_columns);
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                acc[r] = fma(minimum, set1(run.group->sums[b * rows + r]), acc[r]);
        }
        scales += minima ? 2 * tile_columns : tile_columns;
    }
    PACELINE_UNROLL
    for (int r = 0; r < rows; ++r)
        store(out + r * tile_columns, acc[r]);
}

template <Kind kind, int rows> void multiply_rows(const TileRun &run) {
    constexpr std::size_t long_block = kind == Kind::codes6 ? 16 : 128; // the other one that is common
    for (std::size_t i = 0; i < run.count; ++i) {
        if (run.w->block == 32)
            multiply_tile<kind, rows, 32>(run, i);
        else if (run.w->block == long_block)
            multiply_tile<kind, rows, long_block>(run, i);
        else
            multiply_tile<kind, rows, 0>(run, i);
    }
}

// Weights of 16 columns and consecutive k as floats.
template <Kind kind> struct Weights {
    static constexpr std::size_t step = Unit<kind>::k, bytes = Unit<kind>::bytes; // a read: numbers of k
    const std::uint8_t *from;
    __m256i zero;

    // Number i of the read.
    template <int i> PACELINE_INLINE Lanes at() const { return {code<i>(from), code<i>(from + 32)}; }

    template <int i> PACELINE_INLINE __m256 code(const std::uint8_t *unit) const {
        const __m256i quad = quad_of<kind, i / 4>(unit);
        const __m256i alone = _mm256_srli_epi32(_mm256_slli_epi32(quad, 24 - 8 * (i % 4)), 24);
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(alone, zero));
    }
};

// Numbers that are floats already.
template <Kind kind> struct Floats {
    static constexpr std::size_t step = 1, bytes = kind == Kind::single ? 64 : 32;
    const std::uint8_t *from;
    __m256i zero;

    template <int i> PACELINE_INLINE Lanes at() const {
        if constexpr (kind == Kind::half)
            return load_half(reinterpret_cast<const std::uint16_t *>(from));
        else if constexpr (kind == Kind::bfloat)
            return load_bfloat(reinterpret_cast<const std::uint16_t *>(from));
        else
            return load(reinterpret_cast<const float *>(from));
    }
};
template <> struct Weights<Kind::half> : Floats<Kind::half> {};
template <> struct Weights<Kind::bfloat> : Floats<Kind::bfloat> {};
template <> struct Weights<Kind::single> : Floats<Kind::single> {};

// Several tiles together: each sum is one chain of fma, so a single row alone would wait for every result.
template <Kind kind, int rows, int tiles> struct Exact {
    Lanes sums[tiles][rows], acc[tiles][rows];

    PACELINE_INLINE void clear(Lanes (&all)[tiles][rows]) {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t) {
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                all[t][r] = zero();
        }
    }

    template <int i>
    PACELINE_INLINE void add(const std::uint8_t *weights, std::size_t tile_bytes, const float *x,
                             __m256i zero) {
        if constexpr (i < static_cast<int>(Weights<kind>::step)) {
            PACELINE_UNROLL
            for (int t = 0; t < tiles; ++t) {
                const Lanes column =
                    Weights<kind>{weights + static_cast<std::size_t>(t) * tile_bytes, zero}.template at<i>();
                PACELINE_UNROLL
                for (int r = 0; r < rows; ++r)
                    sums[t][r] = fma(column, set1(x[i * rows + r]), sums[t][r]);
            }
            add<i + 1>(weights, tile_bytes, x, zero);
        }
    }

    // Row sums only where there are minima.
    PACELINE_INLINE void end_block(const std::uint16_t *scales, std::size_t stride, const float *row_sums) {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t) {
            const std::uint16_t *at = scales + static_cast<std::size_t>(t) * stride;
            const Lanes scale = load_half(at);
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                acc[t][r] = fma(sums[t][r], scale, acc[t][r]);
            if (row_sums != nullptr) {
                const Lanes minimum = load_half(at + tile_columns);
                PACELINE_UNROLL
                for (int r = 0; r < rows; ++r)
                    acc[t][r] = fma(minimum, set1(row_sums[r]), acc[t][r]);
            }
        }
    }
};

template <Kind kind, int rows, int tiles> void multiply_exact_tiles(const TileRun &run, std::size_t index) {
    using Read = Weights<kind>;
    constexpr bool codes = coded(kind);
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = codes ? w.blocks() : 1, reads = (codes ? w.block : w.k) / Read::step;
    const __m256i zero = _mm256_set1_epi32(codes ? w.zero_point() : 0);
    const std::size_t tile = run.first + index, tile_bytes = w.tile_bytes();
    const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * tile_bytes;
    const std::uint16_t *scales = codes ? w.scales_of(tile) : nullptr;
    const float *x = run.group->x;
    Exact<kind, rows, tiles> state;
    state.clear(state.acc);
    for (std::size_t b = 0; b < blocks; ++b) {
        state.clear(state.sums);
        for (std::size_t i = 0; i < reads; ++i) {
            state.template add<0>(weights, tile_bytes, x, zero);
            weights += Read::bytes;
            x += Read::step * rows;
        }
        if constexpr (codes)
            state.end_block(scales + b * w.scale_line(), blocks * w.scale_line(),
                            w.minima ? run.group->sums + b * rows : nullptr);
    }
    float *out = run.out + index * rows * tile_columns;
    PACELINE_UNROLL
    for (int t = 0; t < tiles; ++t) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            store(out + (t * rows + r) * static_cast<int>(tile_columns),
                  codes ? state.acc[t][r] : state.sums[t][r]);
    }
}

template <Kind kind, int rows> void multiply_exact_rows(const TileRun &run) {
    constexpr int tiles = rows == 1 ? 4 : rows <= 3 ? 2 : 1;
    std::size_t i = 0;
    for (; i + tiles <= run.count; i += tiles)
        multiply_exact_tiles<kind, rows, tiles>(run, i);
    for (; i < run.count; ++i)
        multiply_exact_tiles<kind, rows, 1>(run, i);
}

using Run = void (*)(const TileRun &);

template <Kind kind> void multiply_kind(const TileRun &run) {
    static constexpr Run by_rows[] = {multiply_rows<kind, 1>, multiply_rows<kind, 2>, multiply_rows<kind, 3>,
                                      multiply_rows<kind, 4>, multiply_rows<kind, 5>, multiply_rows<kind, 6>};
    by_rows[run.group->rows - 1](run);
}

template <Kind kind> void multiply_exact_kind(const TileRun &run) {
    static constexpr Run by_rows[] = {multiply_exact_rows<kind, 1>, multiply_exact_rows<kind, 2>,
                                      multiply_exact_rows<kind, 3>, multiply_exact_rows<kind, 4>,
                                      multiply_exact_rows<kind, 5>, multiply_exact_rows<kind, 6>};
    by_rows[run.group->rows - 1](run);
}

} // namespace
} // namespace paceline

#include "matmul_kinds.inc.h"
