// Work on whole rows around a product: RMS norm, quantising, spreading, the end of a product. Written once
// over the lanes of an instruction set; the unit that includes this has included its lanes and defined
// place().
#include "lanes_math.inc.h"

namespace paceline {
namespace {

void normalise(const float *x, const float *norm, float epsilon, std::size_t k, float *y) {
    Lanes squares = zero();
    std::size_t i = 0;
    for (; i + lane_count <= k; i += lane_count) {
        const Lanes a = load(x + i);
        squares = fma(a, a, squares);
    }
    if (i < k) { // the other lanes add 0 to a sum of squares: no change
        const Lanes a = load_part(x + i, k - i);
        squares = fma(a, a, squares);
    }
    const float mean = sum(squares) / static_cast<float>(k);
    const Lanes factor = div(set1(1.0f), sqrt(set1(mean + epsilon)));
    for (i = 0; i + lane_count <= k; i += lane_count)
        store(y + i, mul(mul(load(x + i), factor), load(norm + i)));
    if (i < k)
        store_part(y + i, k - i, mul(mul(load_part(x + i, k - i), factor), load_part(norm + i, k - i)));
}

PACELINE_INLINE std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Lanes i .. i + 15 of a block of `count` numbers, zeros beyond it.
PACELINE_INLINE Lanes load_in(const float *x, std::size_t i, std::size_t count) {
    if (i + lane_count <= count)
        return load(x + i);
    return i < count ? load_part(x + i, count - i) : zero();
}

// The largest |x|; NaN if a number is NaN or infinite.
PACELINE_INLINE float largest_finite(const float *x, std::size_t count) {
    Lanes most[2] = {zero(), zero()}, poison[2] = {zero(), zero()}; // 0, or NaN from the first such number on
    const auto look = [&](int half, Lanes a) {
        most[half] = max(abs(a), most[half]);
        poison[half] = fma(a, zero(), poison[half]);
    };
    std::size_t i = 0;
    for (; i + 2 * lane_count <= count; i += 2 * lane_count) {
        look(0, load(x + i));
        look(1, load(x + i + lane_count));
    }
    for (; i < count; i += lane_count)
        look(0, load_in(x, i, count));
    return largest(max(most[0], most[1])) + sum(add(poison[0], poison[1]));
}

// Codes of one block of `count` numbers from x, zeros up to `block`. Returns the sum of the codes.
PACELINE_INLINE std::int32_t quantise_block(const float *x, std::size_t count, std::size_t block,
                                            float factor, std::size_t first_quad, std::size_t row,
                                            const Group &group) {
    const Lanes times = set1(factor);
    Ints total = set1_int(0);
    const auto put = [&](Ints codes, std::size_t quad, std::size_t quads) {
        std::int8_t bytes[lane_count];
        store_int8(bytes, codes);
        total = add(total, codes);
        for (std::size_t q = 0; q < quads; ++q)
            std::memcpy(group.codes + 4 * place(quad + q, row, group.rows), bytes + 4 * q, 4);
    };
    std::size_t i = 0;
    for (; i + lane_count <= count; i += lane_count)
        put(round_to_int(mul(load(x + i), times)), first_quad + i / 4, 4);
    for (; i < block; i += lane_count)
        put(round_to_int(mul(load_in(x, i, count), times)), first_quad + i / 4, smaller(4, (block - i) / 4));
    return static_cast<std::int32_t>(sum(to_float(total))); // exact: at most 127 * 65536
}

void quantise(const float *x, const PackedMatrix &w, std::size_t row, const Group &group) {
    const std::int32_t zero_point = w.zero_point();
    const std::size_t blocks = w.blocks();
    for (std::size_t b = 0; b < blocks; ++b) {
        const std::size_t from = b * w.block, count = smaller(w.block, w.k - from);
        const float most = largest_finite(x + from, count);
        // Far below every useful number the factor would overflow; such a block is 0.
        const bool finite = most == most, tiny = most < 1e-30f;
        const float factor = finite && !tiny ? 127.0f / most : 0.0f;
        group.scales[b * group.rows + row] = tiny ? 0.0f : most / 127.0f;
        const std::int32_t codes =
            quantise_block(x + from, finite ? count : 0, w.block, factor, from / 4, row, group);
        group.starts[b * group.rows + row] = -zero_point * codes;
        if (w.minima)
            group.sums[b * group.rows + row] = group.scales[b * group.rows + row] * static_cast<float>(codes);
    }
}

void spread(const float *x, const PackedMatrix &w, std::size_t row, const Group &group) {
    const std::size_t padded = w.padded_k(), rows = group.rows;
    for (std::size_t i = 0; i < w.k; ++i)
        group.x[i * rows + row] = x[i];
    for (std::size_t i = w.k; i < padded; ++i)
        group.x[i * rows + row] = 0.0f;
    for (std::size_t b = 0; w.minima && b < w.blocks(); ++b) {
        float sum = 0.0f;
        for (std::size_t i = b * w.block; i < smaller((b + 1) * w.block, w.k); ++i)
            sum += x[i];
        group.sums[b * rows + row] = sum;
    }
}

PACELINE_INLINE Lanes activate(Activation activation, Lanes x) {
    const Lanes one = set1(1.0f);
    if (activation == Activation::silu)
        return div(x, add(one, exp(neg(x))));
    const Lanes half = mul(set1(0.5f), x);
    if (activation == Activation::gelu)
        return mul(half, add(one, erf(mul(x, set1(0.70710678f)))));
    const Lanes inner = mul(x, fma(mul(x, x), set1(0.044715f), one));
    return mul(half, add(one, tanh(mul(inner, set1(0.79788456f)))));
}

// Up to 16 columns from column c, of all rows. What is absent is -0, which changes nothing when it is added.
template <bool gated, bool full> PACELINE_INLINE void finish_columns(const Finish &f, std::size_t c) {
    const std::size_t count = f.columns - c;
    const auto at = [&](const float *from) { return full ? load(from + c) : load_part(from + c, count); };
    const Lanes nothing = set1(-0.0f), bias = f.bias ? at(f.bias) : nothing,
                up_bias = f.up_bias ? at(f.up_bias) : nothing;
    for (std::size_t r = 0; r < f.rows; ++r) {
        Lanes y = add(at(f.acc + r * f.stride), bias);
        if constexpr (gated)
            y = mul(activate(f.activation, y), add(at(f.up + r * f.stride), up_bias));
        if (f.residual)
            y = add(at(f.residual + r * f.y_stride), y);
        if constexpr (full)
            store(f.y + r * f.y_stride + c, y);
        else
            store_part(f.y + r * f.y_stride + c, count, y);
    }
}

void finish(const Finish &f) {
    std::size_t c = 0;
    for (; c + lane_count <= f.columns; c += lane_count)
        f.up ? finish_columns<true, true>(f, c) : finish_columns<false, true>(f, c);
    if (c < f.columns)
        f.up ? finish_columns<true, false>(f, c) : finish_columns<false, false>(f, c);
}

} // namespace
} // namespace paceline
