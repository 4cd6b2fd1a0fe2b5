// Products on tiles with AVX-512 and VNNI: one register is a row of a tile, rows of x are broadcast from
// memory.
#include "lanes_avx512.h"
#include "matmul_ahead.h"
#include "matmul_tiles.h"

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

// One block of a tile for `rows` rows in progress. Several sums for a row hide the latency of the dot
// product; integer sums do not depend on the order.
template <Kind kind, int rows> struct Block {
    static constexpr int sums = rows == 1 ? 4 : rows <= 6 ? 2 : 1;
    // Few rows only wait for memory. Then a near prefetch is as fast as the hardware's own prefetcher at its
    // best, and faster where the scales, a second stream, disturb that (block 32).
    static constexpr Reach reach = rows <= (kind == Kind::codes4 ? 1 : 3) ? Reach::near : Reach::far;
    static constexpr std::size_t quads = kind == Kind::codes4 ? 2 : 1; // of k, in a line of 64 bytes
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

    template <int line> PACELINE_INLINE void add(const std::uint8_t *weights, const std::int8_t *codes) {
        const __m512i both = _mm512_loadu_si512(weights + 64 * line);
        if constexpr (kind == Kind::codes8) {
            add_quad<line % sums>(both, codes + 4 * rows * line);
        } else {
            const __m512i low = _mm512_set1_epi8(15);
            add_quad<2 * line % sums>(_mm512_and_si512(both, low), codes + 4 * rows * 2 * line);
            add_quad<(2 * line + 1) % sums>(_mm512_and_si512(_mm512_srli_epi16(both, 4), low),
                                            codes + 4 * rows * (2 * line + 1));
        }
    }

    template <int sum> PACELINE_INLINE void add_quad(__m512i weights, const std::int8_t *quads_of_rows) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            s[sum][r] = dot(s[sum][r], weights, quads_of_rows + 4 * r);
    }

    PACELINE_INLINE __m512 total(int r) const {
        __m512i all = s[0][r];
        PACELINE_UNROLL
        for (int i = 1; i < sums; ++i)
            all = _mm512_add_epi32(all, s[i][r]);
        return _mm512_cvtepi32_ps(all);
    }
};

// `fixed_lines`: 64-byte lines in a block where that is known while compiling, else 0.
template <Kind kind, int rows, int fixed_lines> void multiply_tile(const TileRun &run, std::size_t index) {
    using Sums = Block<kind, rows>;
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = w.blocks(), tile = run.first + index;
    const std::size_t lines = fixed_lines ? fixed_lines : w.block / (4 * Sums::quads);
    const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * w.tile_bytes();
    const std::uint16_t *scales = w.scales + tile * blocks * tile_columns;
    const std::int8_t *codes = run.group->codes;
    const std::int32_t *starts = run.group->starts;
    const float *row_scales = run.group->scales;
    Ahead<Sums::reach> ahead(run, index, weights);
    __m512 acc[rows];
    PACELINE_UNROLL
    for (int r = 0; r < rows; ++r)
        acc[r] = _mm512_setzero_ps();
    for (std::size_t b = 0; b < blocks; ++b) {
        Sums sums;
        sums.start(starts);
        std::size_t line = 0;
        PACELINE_ROLLED // one row reads memory a sixth slower otherwise
            for (; line + 4 <= lines; line += 4) {
            ahead.line();
            sums.template add<0>(weights, codes);
            ahead.line();
            sums.template add<1>(weights, codes);
            ahead.line();
            sums.template add<2>(weights, codes);
            ahead.line();
            sums.template add<3>(weights, codes);
            weights += 4 * 64;
            codes += 4 * 4 * Sums::quads * rows;
        }
        if constexpr (fixed_lines == 0) {
            for (; line < lines; ++line) {
                ahead.line();
                sums.template add<0>(weights, codes);
                weights += 64;
                codes += 4 * Sums::quads * rows;
            }
        }
        const __m512 scale = load_half(scales).v;
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            acc[r] =
                _mm512_fmadd_ps(sums.total(r), _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r])), acc[r]);
        starts += rows;
        row_scales += rows;
        scales += tile_columns;
    }
    float *out = run.out + index * rows * tile_columns;
    PACELINE_UNROLL
    for (int r = 0; r < rows; ++r)
        _mm512_store_ps(out + r * tile_columns, acc[r]);
}

template <Kind kind, int rows> void multiply_rows(const TileRun &run) {
    constexpr int quads = Block<kind, rows>::quads;
    for (std::size_t i = 0; i < run.count; ++i) {
        if (run.w->block == 128)
            multiply_tile<kind, rows, 32 / quads>(run, i);
        else if (run.w->block == 32)
            multiply_tile<kind, rows, 8 / quads>(run, i);
        else
            multiply_tile<kind, rows, 0>(run, i);
    }
}

// Weights of 16 columns and consecutive k as floats.
template <Kind kind> struct Weights {
    static constexpr std::size_t step = kind == Kind::codes4   ? 8
                                        : kind == Kind::codes8 ? 4
                                                               : 1; // numbers of k in a read
    static constexpr std::size_t bytes = kind == Kind::half || kind == Kind::bfloat ? 32 : 64;
    __m512i raw;

    explicit PACELINE_INLINE Weights(const std::uint8_t *from) {
        const auto *halves = reinterpret_cast<const std::uint16_t *>(from);
        if constexpr (kind == Kind::half)
            raw = _mm512_castps_si512(load_half(halves).v);
        else if constexpr (kind == Kind::bfloat)
            raw = _mm512_castps_si512(load_bfloat(halves).v);
        else
            raw = _mm512_loadu_si512(from);
    }

    // The number i of the read. 4 bits: the permutation looks only at the low 4 bits of a lane.
    template <int i> PACELINE_INLINE __m512 at() const {
        if constexpr (kind == Kind::codes4) {
            const __m512 floats = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
            return _mm512_permutexvar_ps(_mm512_srli_epi32(raw, i < 4 ? 8 * i : 8 * (i - 4) + 4), floats);
        } else if constexpr (kind == Kind::codes8) {
            const __m512i flipped =
                _mm512_xor_si512(raw, _mm512_set1_epi8(-128)); // signed bytes, minus the zero point
            return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(flipped, 24 - 8 * i), 24));
        } else {
            return _mm512_castsi512_ps(raw);
        }
    }
};

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

    PACELINE_INLINE void step(const std::uint8_t *weights, std::size_t tile_bytes, const float *x) {
        if constexpr (tiles == 1)
            add<0>({Weights<kind>(weights)}, x);
        else if constexpr (tiles == 2)
            add<0>({Weights<kind>(weights), Weights<kind>(weights + tile_bytes)}, x);
        else
            add<0>({Weights<kind>(weights), Weights<kind>(weights + tile_bytes),
                    Weights<kind>(weights + 2 * tile_bytes), Weights<kind>(weights + 3 * tile_bytes)},
                   x);
    }

    PACELINE_INLINE void end_block(const std::uint16_t *scales, std::size_t stride) {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t) {
            const __m512 scale = load_half(scales + t * stride).v;
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                acc[t][r] = _mm512_fmadd_ps(sums[t][r], scale, acc[t][r]);
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
    constexpr bool coded = kind == Kind::codes4 || kind == Kind::codes8;
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = coded ? w.blocks() : 1, reads = (coded ? w.block : w.k) / Read::step;
    const std::size_t tile = run.first + index, tile_bytes = w.tile_bytes();
    const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * tile_bytes;
    const std::uint16_t *scales = w.scales + (coded ? tile * blocks * tile_columns : 0);
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
            state.step(weights, tile_bytes, x);
            weights += Read::bytes;
            x += Read::step * rows;
        }
        if constexpr (coded)
            state.end_block(scales + b * tile_columns, blocks * tile_columns);
    }
    float *out = run.out + index * rows * tile_columns;
    PACELINE_UNROLL
    for (int t = 0; t < tiles; ++t) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            _mm512_store_ps(out + (t * rows + r) * tile_columns, coded ? state.acc[t][r] : state.sums[t][r]);
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

void multiply(const TileRun &run) {
    if (run.w->kind == Kind::codes4)
        multiply_kind<Kind::codes4>(run);
    else
        multiply_kind<Kind::codes8>(run);
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

#include "matmul_rows.inc.h"

namespace paceline {

const TileKernels avx512vnni_tiles = {most_rows_here, most_rows_here, place,          normalise, quantise,
                                      spread,         multiply,       multiply_exact, finish};

} // namespace paceline
