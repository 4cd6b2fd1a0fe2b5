// Products on tiles with AVX-512 and VNNI: one register is a row of a tile, rows of x are broadcast from
// memory.
#include "lanes_avx512.h"
#include "matmul_ahead.h"
#include "matmul_tiles.h"
#include "matmul_unit.h"

namespace paceline {
namespace {

std::size_t place(std::size_t quad, std::size_t row, std::size_t rows) { return quad * rows + row; }

// sum + weights (16 x 4 unsigned bytes) times the 4 signed bytes at `quad`. In assembler because GCC 12 turns
// the intrinsic into a broadcast of its own and copies of registers; the instruction does the broadcast for
// free.
PACELINE_INLINE __m512i dot(__m512i sum, __m512i weights, const std::int8_t *quad) {
#if defined(__GNUC__)
    struct Quad {
        std::int8_t bytes[4];
    };
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(weights), "m"(*reinterpret_cast<const Quad *>(quad)));
    return sum;
#else
    std::int32_t bytes;
    std::memcpy(&bytes, quad, 4);
    return _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(bytes));
#endif
}

// Quad `quad` of a unit, as bytes.
template <Kind kind, std::size_t quad> PACELINE_INLINE __m512i quad_of(const std::uint8_t *unit) {
    if constexpr (kind == Kind::codes8) {
        return _mm512_loadu_si512(unit);
    } else {
        constexpr int more = Unit<kind>::more, at = static_cast<int>(quad) * more; // where its upper bits are
        const __m512i both = _mm512_loadu_si512(unit + Unit<kind>::first + quad / 2 * 64);
        const __m512i moved = quad % 2 == 0 ? both : _mm512_srli_epi16(both, 4), low = _mm512_set1_epi8(15);
        if constexpr (more == 0) {
            return _mm512_and_si512(moved, low);
        } else {
            const __m512i upper = _mm512_loadu_si512(unit);
            const __m512i placed = at < 4 ? _mm512_slli_epi16(upper, at < 4 ? 4 - at : 0)
                                          : _mm512_srli_epi16(upper, at < 4 ? 0 : at - 4);
            // The low four bits of one, all others of the other; then only the bits of the code are kept.
            return _mm512_and_si512(_mm512_ternarylogic_epi32(low, moved, placed, 0xca),
                                    _mm512_set1_epi8(15 | ((1 << more) - 1) << 4));
        }
    }
}

// One block of a tile for `rows` rows in progress. Several sums for a row hide the latency of the dot
// product; integer sums do not depend on the order.
template <Kind kind, int rows> struct Block {
    static constexpr int sums = rows == 1 ? 4 : rows <= 6 ? 2 : 1;
    // Few rows only wait for memory. Then a near prefetch is as fast as the hardware's own prefetcher at its
    // best, and faster where the scales, a second stream, disturb that (block 32).
    static constexpr Reach reach = rows <= (kind == Kind::codes8 ? 3 : 1) ? Reach::near : Reach::far;
    __m512i s[sums][rows];

    PACELINE_INLINE void start(const std::int32_t *starts) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r) {
            s[0][r] = _mm512_set1_epi32(starts[r]);
            PACELINE_UNROLL
            for (int i = 1; i < sums; ++i)
                s[i][r] = _mm512_setzero_si512();
        }
    }

    // Quads 0 to count - 1 of some units in a row.
    template <std::size_t count, std::size_t quad = 0, class Hints>
    PACELINE_INLINE void add(const std::uint8_t *weights, const std::int8_t *codes, Hints &ahead) {
        if constexpr (quad < count) {
            using U = Unit<kind>;
            constexpr std::size_t inside = quad % U::quads;
            if constexpr (inside == 0 && U::first != 0)
                ahead.line();
            if constexpr (kind == Kind::codes8 || inside % 2 == 0)
                ahead.line();
            const __m512i column = quad_of<kind, inside>(weights + quad / U::quads * U::bytes);
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                s[quad % sums][r] = dot(s[quad % sums][r], column, codes + 4 * rows * quad + 4 * r);
            add<count, quad + 1>(weights, codes, ahead);
        }
    }

    PACELINE_INLINE __m512 total(int r) const {
        __m512i all = s[0][r];
        PACELINE_UNROLL
        for (int i = 1; i < sums; ++i)
            all = _mm512_add_epi32(all, s[i][r]);
        return _mm512_cvtepi32_ps(all);
    }
};

// `fixed_block`: numbers in a block where that is known while compiling, else 0.
template <Kind kind, int rows, std::size_t fixed_block>
void multiply_tile(const TileRun &run, std::size_t index) {
    constexpr std::size_t unit = Unit<kind>::k, step = kind == Kind::codes4 || kind == Kind::codes5 ? 32 : 16;
    using Sums = Block<kind, rows>;
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = w.blocks(), tile = run.first + index;
    const std::size_t block = fixed_block ? fixed_block : w.block;
    const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * w.tile_bytes();
    const std::uint16_t *scales = w.scales_of(tile);
    const std::int8_t *codes = run.group->codes;
    const std::int32_t *starts = run.group->starts;
    const float *row_scales = run.group->scales, *row_sums = run.group->sums;
    const bool minima = w.minima;
    Ahead<Sums::reach> ahead(run, index, weights);
    __m512 acc[rows];
    PACELINE_UNROLL
    for (int r = 0; r < rows; ++r)
        acc[r] = _mm512_setzero_ps();
    for (std::size_t b = 0; b < blocks; ++b) {
        Sums sums;
        sums.start(starts);
        std::size_t k = 0;
        PACELINE_ROLLED // one row reads memory a sixth slower otherwise
            for (; k + step <= block; k += step) {
            sums.template add<step / 4>(weights, codes, ahead);
            weights += step * 2 * bits_in(kind);
            codes += step * rows;
        }
        if constexpr (fixed_block == 0) {
            for (; k < block; k += unit) {
                sums.template add<unit / 4>(weights, codes, ahead);
                weights += unit * 2 * bits_in(kind);
                codes += unit * rows;
            }
        }
        const __m512 scale = load_half(scales).v;
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            acc[r] =
                _mm512_fmadd_ps(sums.total(r), _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r])), acc[r]);
        if (kind != Kind::codes8 && minima) {
            const __m512 minimum = load_half(scales + tile_columns).v;
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                acc[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(row_sums[r]), acc[r]);
            row_sums += rows;
        }
        starts += rows;
        row_scales += rows;
        scales += minima ? 2 * tile_columns : tile_columns;
    }
    float *out = run.out + index * rows * tile_columns;
    PACELINE_UNROLL
    for (int r = 0; r < rows; ++r)
        _mm512_store_ps(out + r * tile_columns, acc[r]);
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
    static constexpr std::size_t step = 1, bytes = kind == Kind::single ? 64 : 32; // a read: numbers of k
    __m512i raw;

    PACELINE_INLINE Weights(const std::uint8_t *from, __m512) {
        const auto *halves = reinterpret_cast<const std::uint16_t *>(from);
        if constexpr (kind == Kind::half)
            raw = _mm512_castps_si512(load_half(halves).v);
        else if constexpr (kind == Kind::bfloat)
            raw = _mm512_castps_si512(load_bfloat(halves).v);
        else
            raw = _mm512_loadu_si512(from);
    }

    template <int i> PACELINE_INLINE __m512 at() const { return _mm512_castsi512_ps(raw); }
};

// Codes minus their zero point, a unit at a time.
template <Kind kind> struct Codes {
    static constexpr std::size_t step = Unit<kind>::k, bytes = Unit<kind>::bytes;
    const std::uint8_t *from;
    __m512 zero;

    template <int i> PACELINE_INLINE __m512 at() const {
        if constexpr (kind == Kind::codes4) { // the permutation looks only at the low 4 bits of a lane
            const __m512 floats =
                _mm512_sub_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), zero);
            return _mm512_permutexvar_ps(
                _mm512_srli_epi32(_mm512_loadu_si512(from), i < 4 ? 8 * i : 8 * (i - 4) + 4), floats);
        }
        const __m512i quad = quad_of<kind, i / 4>(from);
        const __m512i code = _mm512_srli_epi32(_mm512_slli_epi32(quad, 24 - 8 * (i % 4)), 24);
        return _mm512_sub_ps(_mm512_cvtepi32_ps(code), zero);
    }
};
template <> struct Weights<Kind::codes4> : Codes<Kind::codes4> {};
template <> struct Weights<Kind::codes5> : Codes<Kind::codes5> {};
template <> struct Weights<Kind::codes6> : Codes<Kind::codes6> {};
template <> struct Weights<Kind::codes8> : Codes<Kind::codes8> {};

// Several tiles together: each sum is one chain of fma, so a single row alone would wait for every result.
template <Kind kind, int rows, int tiles> struct Exact {
    __m512 sums[tiles][rows], acc[tiles][rows];

    PACELINE_INLINE void clear(__m512 (&all)[tiles][rows]) {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t) {
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                all[t][r] = _mm512_setzero_ps();
        }
    }

    PACELINE_INLINE void step(const std::uint8_t *weights, std::size_t tile_bytes, const float *x,
                              __m512 zero) {
        using W = Weights<kind>;
        if constexpr (tiles == 1)
            add<0>({W{weights, zero}}, x);
        else if constexpr (tiles == 2)
            add<0>({W{weights, zero}, W{weights + tile_bytes, zero}}, x);
        else
            add<0>({W{weights, zero}, W{weights + tile_bytes, zero}, W{weights + 2 * tile_bytes, zero},
                    W{weights + 3 * tile_bytes, zero}},
                   x);
    }

    // Row sums only where there are minima.
    PACELINE_INLINE void end_block(const std::uint16_t *scales, std::size_t stride, const float *row_sums) {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t) {
            const __m512 scale = load_half(scales + t * stride).v;
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                acc[t][r] = _mm512_fmadd_ps(sums[t][r], scale, acc[t][r]);
            if (row_sums != nullptr) {
                const __m512 minimum = load_half(scales + t * stride + tile_columns).v;
                PACELINE_UNROLL
                for (int r = 0; r < rows; ++r)
                    acc[t][r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(row_sums[r]), acc[t][r]);
            }
        }
    }

    template <int i> PACELINE_INLINE void add(const Weights<kind> (&w)[tiles], const float *x) {
        if constexpr (i < static_cast<int>(Weights<kind>::step)) {
            PACELINE_UNROLL
            for (int t = 0; t < tiles; ++t) {
                const __m512 column = w[t].template at<i>();
                PACELINE_UNROLL
                for (int r = 0; r < rows; ++r)
                    sums[t][r] = _mm512_fmadd_ps(column, _mm512_set1_ps(x[i * rows + r]), sums[t][r]);
            }
            add<i + 1>(w, x);
        }
    }
};

template <Kind kind, int rows, int tiles> void multiply_exact_tiles(const TileRun &run, std::size_t index) {
    using Read = Weights<kind>;
    constexpr bool codes = coded(kind);
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = codes ? w.blocks() : 1, reads = (codes ? w.block : w.k) / Read::step;
    const __m512 zero = _mm512_set1_ps(codes ? static_cast<float>(w.zero_point()) : 0.0f);
    const std::size_t tile = run.first + index, tile_bytes = w.tile_bytes();
    const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * tile_bytes;
    const std::uint16_t *scales = codes ? w.scales_of(tile) : nullptr;
    const float *x = run.group->x;
    const char *ahead = run.ahead + index * (tile_bytes / 64) * run.ahead_step;
    Exact<kind, rows, tiles> state;
    state.clear(state.acc);
    for (std::size_t b = 0; b < blocks; ++b) {
        state.clear(state.sums);
        PACELINE_ROLLED
        for (std::size_t i = 0; i < reads; ++i) {
            if constexpr (rows > 3) { // fewer rows leave it to the hardware
                PACELINE_UNROLL
                for (int t = 0; t < tiles; ++t)
                    _mm_prefetch(ahead + static_cast<std::size_t>(t) * tile_bytes, _MM_HINT_T1);
                ahead += run.ahead_step * Read::bytes / 64;
            }
            state.step(weights, tile_bytes, x, zero);
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
            _mm512_store_ps(out + (t * rows + r) * tile_columns, codes ? state.acc[t][r] : state.sums[t][r]);
    }
}

template <Kind kind, int rows> void multiply_exact_rows(const TileRun &run) {
    constexpr int tiles = rows <= 2 ? 4 : rows <= 6 ? 2 : 1;
    std::size_t i = 0;
    for (; i + tiles <= run.count; i += tiles)
        multiply_exact_tiles<kind, rows, tiles>(run, i);
    for (; i < run.count; ++i)
        multiply_exact_tiles<kind, rows, 1>(run, i);
}

using Run = void (*)(const TileRun &);
constexpr std::size_t most_rows_here =
    13; // 13 integer and 13 float sums, and room for the weights, in 32 registers

template <Kind kind> void multiply_kind(const TileRun &run) {
    static constexpr Run by_rows[most_rows_here] = {
        multiply_rows<kind, 1>,  multiply_rows<kind, 2>,  multiply_rows<kind, 3>,  multiply_rows<kind, 4>,
        multiply_rows<kind, 5>,  multiply_rows<kind, 6>,  multiply_rows<kind, 7>,  multiply_rows<kind, 8>,
        multiply_rows<kind, 9>,  multiply_rows<kind, 10>, multiply_rows<kind, 11>, multiply_rows<kind, 12>,
        multiply_rows<kind, 13>,
    };
    by_rows[run.group->rows - 1](run);
}

template <Kind kind> void multiply_exact_kind(const TileRun &run) {
    static constexpr Run by_rows[most_rows_here] = {
        multiply_exact_rows<kind, 1>,  multiply_exact_rows<kind, 2>,  multiply_exact_rows<kind, 3>,
        multiply_exact_rows<kind, 4>,  multiply_exact_rows<kind, 5>,  multiply_exact_rows<kind, 6>,
        multiply_exact_rows<kind, 7>,  multiply_exact_rows<kind, 8>,  multiply_exact_rows<kind, 9>,
        multiply_exact_rows<kind, 10>, multiply_exact_rows<kind, 11>, multiply_exact_rows<kind, 12>,
        multiply_exact_rows<kind, 13>,
    };
    by_rows[run.group->rows - 1](run);
}

} // namespace
} // namespace paceline

#include "matmul_kinds.inc.h"
#include "matmul_rows.inc.h"

namespace paceline {

const TileKernels avx512vnni_tiles = {most_rows_here, most_rows_here, place,          normalise, quantise,
                                      spread,         multiply,       multiply_exact, finish};

} // namespace paceline
