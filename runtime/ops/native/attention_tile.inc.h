// Up to six rows that see the same keys of a block: scores, one step of the online softmax, weighted values.
//
// The order of every sum is the same for any number of rows and any width of the registers: a score runs over
// d, the sum of a block's weights runs in 16 lanes (key i in lane i % 16) that a fixed tree adds, a value
// runs over the keys.
#pragma once

namespace paceline {
namespace {

constexpr std::size_t tile_rows = 6;
constexpr std::size_t tile_lanes = lane_registers >= 32 ? 4 : 1; // so that a tile's sums stay in registers
constexpr std::size_t block_lanes = block_keys / lane_count;
constexpr std::uint64_t all_keys = ~std::uint64_t{0};

struct Query {
    const float *q; // rows, times the scale
    std::size_t stride, size;
};

// scores[R, 64] = the rows' products with the 64 keys of `keys` [size, 64].
template <std::size_t R>
void score(const Query &query, const float *keys, float *scores, std::size_t stride) {
    for (std::size_t first = 0; first < block_lanes; first += tile_lanes) {
        Lanes sums[R][tile_lanes];
        PACELINE_UNROLL
        for (std::size_t r = 0; r < R; ++r)
            PACELINE_UNROLL
        for (std::size_t c = 0; c < tile_lanes; ++c)
            sums[r][c] = zero();
        const float *line = keys + first * lane_count;
        for (std::size_t d = 0; d < query.size; ++d, line += block_keys) {
            Lanes k[tile_lanes];
            PACELINE_UNROLL
            for (std::size_t c = 0; c < tile_lanes; ++c)
                k[c] = load(line + c * lane_count);
            PACELINE_UNROLL
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes x = set1(query.q[r * query.stride + d]);
                PACELINE_UNROLL
                for (std::size_t c = 0; c < tile_lanes; ++c)
                    sums[r][c] = fma(x, k[c], sums[r][c]);
            }
        }
        PACELINE_UNROLL
        for (std::size_t r = 0; r < R; ++r)
            PACELINE_UNROLL
        for (std::size_t c = 0; c < tile_lanes; ++c)
            store(scores + r * stride + (first + c) * lane_count, sums[r][c]);
    }
}

// The same for a block that stands in the cache and is used by these rows only: its keys are turned in
// registers.
template <std::size_t R, class Number>
void score_cached(const Query &query, const Head<Number> &head, std::size_t first, float *scores) {
    for (std::size_t i = 0; i < block_keys; i += lane_count) {
        const Number *keys = head.k.cached + (first + i) * query.size;
        Lanes sums[R];
        PACELINE_UNROLL
        for (std::size_t r = 0; r < R; ++r)
            sums[r] = zero();
        for (std::size_t d = 0; d < query.size; d += lane_count) {
            Lanes k[lane_count];
            load_transposed(keys + d, query.size, k);
            PACELINE_UNROLL
            for (std::size_t j = 0; j < lane_count; ++j) {
                prefetch_line(head.k, first + i + block_keys, d, j);
                prefetch_line(head.v, first + i + lane_count, d, j);
                PACELINE_UNROLL
                for (std::size_t r = 0; r < R; ++r)
                    sums[r] = fma(set1(query.q[r * query.stride + d + j]), k[j], sums[r]);
            }
        }
        PACELINE_UNROLL
        for (std::size_t r = 0; r < R; ++r)
            store(scores + r * block_keys + i, sums[r]);
    }
}

// Where the online softmax of some rows stands: largest score, sum of weights.
struct Softmax {
    float *largest, *total;
};

// Turns scores[rows, 64] into weights times v_scales; faded[r] is what row r's earlier sums are multiplied
// by.
struct Step {
    std::uint64_t seen;               // bit i: key i is seen; not 0
    const float *k_scales, *v_scales; // [64] or null
    float softcap;
};

PACELINE_INLINE Lanes final_scores(const Step &step, Lanes raw, std::size_t c) {
    if (step.k_scales != nullptr)
        raw = mul(raw, load(step.k_scales + c * lane_count));
    if (step.softcap != 0.0f)
        raw = mul(tanh(div(raw, set1(step.softcap))), set1(step.softcap));
    if (step.seen != all_keys) {
        const auto seen = static_cast<std::uint32_t>(step.seen >> (c * lane_count)) & 0xffffu;
        raw = select(mask_of_bits(seen), raw, set1(-INFINITY));
    }
    return raw;
}

PACELINE_INLINE void soften(const Step &step, std::size_t rows, float *scores, const Softmax &softmax,
                            float *faded) {
    float drop[lane_count] = {};
    for (std::size_t r = 0; r < rows; ++r) {
        float *row = scores + r * block_keys;
        Lanes a[block_lanes];
        PACELINE_UNROLL
        for (std::size_t c = 0; c < block_lanes; ++c) {
            a[c] = final_scores(step, load(row + c * lane_count), c);
            store(row + c * lane_count, a[c]);
        }
        const float before = softmax.largest[r], top = largest(max(max(a[0], a[1]), max(a[2], a[3])));
        softmax.largest[r] = top > before ? top : before;
        drop[r] = before - softmax.largest[r];
    }
    store(faded, exp(load(drop)));
    for (std::size_t r = 0; r < rows; ++r) {
        float *row = scores + r * block_keys;
        const Lanes top = set1(softmax.largest[r]);
        Lanes total = zero();
        PACELINE_UNROLL
        for (std::size_t c = 0; c < block_lanes; ++c) {
            const Lanes weights = exp(sub(load(row + c * lane_count), top));
            total = add(total, weights);
            store(row + c * lane_count,
                  step.v_scales == nullptr ? weights : mul(weights, load(step.v_scales + c * lane_count)));
        }
        const float kept = softmax.total[r] * faded[r];
        softmax.total[r] = kept + sum(total);
    }
}

// Values of a block: row i at data + offsets[i].
template <class Number> struct Values {
    const Number *data;
    const std::uint32_t *offsets;
    std::size_t first, end; // which of them
};

// sums[R, padded] = sums * faded + weights[R, 64] values, for C * 16 columns.
template <std::size_t R, std::size_t C, class Number>
PACELINE_INLINE void weigh_columns(const float *weights, const float *faded, const Values<Number> &values,
                                   float *sums, std::size_t stride) {
    Lanes a[R][C];
    PACELINE_UNROLL
    for (std::size_t r = 0; r < R; ++r) {
        const Lanes factor = set1(faded[r]);
        PACELINE_UNROLL
        for (std::size_t c = 0; c < C; ++c)
            a[r][c] = mul(load(sums + r * stride + c * lane_count), factor);
    }
    for (std::size_t i = values.first; i < values.end; ++i) {
        const Number *row = values.data + values.offsets[i];
        Lanes v[C];
        PACELINE_UNROLL
        for (std::size_t c = 0; c < C; ++c)
            v[c] = load_as(row + c * lane_count);
        PACELINE_UNROLL
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes x = set1(weights[r * block_keys + i]);
            PACELINE_UNROLL
            for (std::size_t c = 0; c < C; ++c)
                a[r][c] = fma(x, v[c], a[r][c]);
        }
    }
    PACELINE_UNROLL
    for (std::size_t r = 0; r < R; ++r)
        PACELINE_UNROLL
    for (std::size_t c = 0; c < C; ++c)
        store(sums + r * stride + c * lane_count, a[r][c]);
}

template <std::size_t R, class Number>
void weigh(const float *weights, const float *faded, Values<Number> values, float *sums, std::size_t stride) {
    std::size_t left = stride;
    for (; left >= tile_lanes * lane_count; left -= tile_lanes * lane_count) {
        weigh_columns<R, tile_lanes>(weights, faded, values, sums, stride);
        sums += tile_lanes * lane_count;
        values.data += tile_lanes * lane_count;
    }
    for (; left > 0; left -= lane_count) {
        weigh_columns<R, 1>(weights, faded, values, sums, stride);
        sums += lane_count;
        values.data += lane_count;
    }
}

using Score = void (*)(const Query &, const float *, float *, std::size_t);
constexpr Score scores_of[tile_rows + 1] = {nullptr,  score<1>, score<2>, score<3>,
                                            score<4>, score<5>, score<6>};

template <class Number> struct Weighing {
    using Function = void (*)(const float *, const float *, Values<Number>, float *, std::size_t);
    static constexpr Function of[tile_rows + 1] = {nullptr,          weigh<1, Number>, weigh<2, Number>,
                                                   weigh<3, Number>, weigh<4, Number>, weigh<5, Number>,
                                                   weigh<6, Number>};
};

template <class Number> struct CachedScores {
    using Function = void (*)(const Query &, const Head<Number> &, std::size_t, float *);
    static constexpr Function of[tile_rows + 1] = {nullptr,
                                                   score_cached<1, Number>,
                                                   score_cached<2, Number>,
                                                   score_cached<3, Number>,
                                                   score_cached<4, Number>,
                                                   score_cached<5, Number>,
                                                   score_cached<6, Number>};
};

// The weighted values of all seen keys; a key that is not seen is skipped, whatever stands there.
template <class Number>
PACELINE_INLINE void weigh_seen(std::size_t rows, std::uint64_t seen, const float *weights,
                                const float *faded, const Number *data, const std::uint32_t *offsets,
                                float *sums, std::size_t stride) {
    const float ones[tile_rows] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    Values<Number> values{data, offsets, 0, block_keys};
    if (seen == all_keys) {
        Weighing<Number>::of[rows](weights, faded, values, sums, stride);
        return;
    }
    for (std::size_t i = 0; i < block_keys; i = values.end) {
        for (; i < block_keys && (seen >> i & 1u) == 0;)
            ++i;
        values.first = values.end = i;
        for (; values.end < block_keys && (seen >> values.end & 1u) != 0;)
            ++values.end;
        if (values.first == values.end)
            return;
        Weighing<Number>::of[rows](weights, faded, values, sums, stride);
        faded = ones;
    }
}

} // namespace
} // namespace paceline
