// Products on tiles with registers of 256 bits: a row of a tile is two of them. Included by the units for
// AVX2 and AVX-VNNI, which differ in Block, the integer sums of one block; the unit has included
// lanes_avx2.h.
//
// template <Kind kind, int rows> struct Block {
//     static constexpr Reach reach; // see matmul_ahead.h
//     start(starts);         // of each row
//     add<line>(weights, x); // 64 bytes of weights, number `line` (0 to 3) since the last settle()
//     settle();              // after at most 4 lines
//     Lanes total(row);
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

template <Kind kind> constexpr std::size_t quads_in_line = kind == Kind::codes4 ? 2 : 1;

// `fixed_lines`: 64-byte lines in a block where that is known while compiling, else 0.
template <Kind kind, int rows, int fixed_lines> void multiply_tile(const TileRun &run, std::size_t index) {
    constexpr std::size_t quads = quads_in_line<kind>;
    const PackedMatrix &w = *run.w;
    const std::size_t blocks = w.blocks(), tile = run.first + index;
    const std::size_t lines = fixed_lines ? fixed_lines : w.block / (4 * quads);
    const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * w.tile_bytes();
    const std::uint16_t *scales = w.scales + tile * blocks * tile_columns;
    const std::int8_t *codes = run.group->codes;
    Ahead<Block<kind, rows>::reach> ahead(run, index, weights);
    float *out = run.out + index * rows * tile_columns;
    Lanes acc[rows];
    PACELINE_UNROLL
    for (int r = 0; r < rows; ++r)
        acc[r] = zero();
    for (std::size_t b = 0; b < blocks; ++b) {
        Block<kind, rows> sums;
        sums.start(run.group->starts + b * rows);
        std::size_t line = 0;
        for (; line + 4 <= lines; line += 4) {
            ahead.line();
            sums.template add<0>(weights, codes);
            ahead.line();
            sums.template add<1>(weights + 64, codes + 4 * quads * rows);
            ahead.line();
            sums.template add<2>(weights + 128, codes + 8 * quads * rows);
            ahead.line();
            sums.template add<3>(weights + 192, codes + 12 * quads * rows);
            sums.settle();
            weights += 4 * 64;
            codes += 4 * 4 * quads * rows;
        }
        if constexpr (fixed_lines == 0) {
            for (; line < lines; ++line) {
                ahead.line();
                sums.template add<0>(weights, codes);
                sums.settle();
                weights += 64;
                codes += 4 * quads * rows;
            }
        }
        const Lanes scale = load_half(scales + b * tile_columns);
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            acc[r] = fma(sums.total(r), mul(scale, set1(run.group->scales[b * rows + r])), acc[r]);
    }
    PACELINE_UNROLL
    for (int r = 0; r < rows; ++r)
        store(out + r * tile_columns, acc[r]);
}

template <Kind kind, int rows> void multiply_rows(const TileRun &run) {
    constexpr int quads = static_cast<int>(quads_in_line<kind>);
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
                                                               : 1; // of k, in a read
    static constexpr std::size_t bytes = kind == Kind::half || kind == Kind::bfloat ? 32 : 64;
    const std::uint8_t *from;

    // Number i of the read.
    template <int i> PACELINE_INLINE Lanes at() const {
        if constexpr (kind == Kind::half)
            return load_half(reinterpret_cast<const std::uint16_t *>(from));
        else if constexpr (kind == Kind::bfloat)
            return load_bfloat(reinterpret_cast<const std::uint16_t *>(from));
        else if constexpr (kind == Kind::single)
            return load(reinterpret_cast<const float *>(from));
        else
            return {code<i>(load_256(from)), code<i>(load_256(from + 32))};
    }

    template <int i> PACELINE_INLINE static __m256 code(__m256i raw) {
        if constexpr (kind == Kind::codes4) {
            const __m256i codes = _mm256_and_si256(_mm256_srli_epi32(raw, i < 4 ? 8 * i : 8 * (i - 4) + 4),
                                                   _mm256_set1_epi32(15));
            return _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(8)));
        } else {
            const __m256i flipped =
                _mm256_xor_si256(raw, _mm256_set1_epi8(-128)); // signed bytes, minus the zero point
            return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(flipped, 24 - 8 * i), 24));
        }
    }
};

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
    PACELINE_INLINE void add(const std::uint8_t *weights, std::size_t tile_bytes, const float *x) {
        if constexpr (i < static_cast<int>(Weights<kind>::step)) {
            PACELINE_UNROLL
            for (int t = 0; t < tiles; ++t) {
                const Lanes column =
                    Weights<kind>{weights + static_cast<std::size_t>(t) * tile_bytes}.template at<i>();
                PACELINE_UNROLL
                for (int r = 0; r < rows; ++r)
                    sums[t][r] = fma(column, set1(x[i * rows + r]), sums[t][r]);
            }
            add<i + 1>(weights, tile_bytes, x);
        }
    }

    PACELINE_INLINE void end_block(const std::uint16_t *scales, std::size_t stride) {
        PACELINE_UNROLL
        for (int t = 0; t < tiles; ++t) {
            const Lanes scale = load_half(scales + static_cast<std::size_t>(t) * stride);
            PACELINE_UNROLL
            for (int r = 0; r < rows; ++r)
                acc[t][r] = fma(sums[t][r], scale, acc[t][r]);
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
    const std::uint16_t *scales = coded ? w.scales + tile * blocks * tile_columns : nullptr;
    const float *x = run.group->x;
    Exact<kind, rows, tiles> state;
    state.clear(state.acc);
    for (std::size_t b = 0; b < blocks; ++b) {
        state.clear(state.sums);
        for (std::size_t i = 0; i < reads; ++i) {
            state.template add<0>(weights, tile_bytes, x);
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
            store(out + (t * rows + r) * static_cast<int>(tile_columns),
                  coded ? state.acc[t][r] : state.sums[t][r]);
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

void multiply(const TileRun &run) {
    if (run.w->kind == Kind::codes4)
        multiply_kind<Kind::codes4>(run);
    else
        multiply_kind<Kind::codes8>(run);
}

template <Kind kind> void multiply_exact_kind(const TileRun &run) {
    static constexpr Run by_rows[] = {multiply_exact_rows<kind, 1>, multiply_exact_rows<kind, 2>,
                                      multiply_exact_rows<kind, 3>, multiply_exact_rows<kind, 4>,
                                      multiply_exact_rows<kind, 5>, multiply_exact_rows<kind, 6>};
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
