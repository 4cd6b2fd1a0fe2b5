// Heads made ready for attention: normed, turned by their position, rounded as the cache rounds.
#pragma once

namespace paceline {
namespace {

// Codes as floats, half to even, and the scale that gives the numbers back: the largest one becomes 127 or
// -127.
float to_codes(const float *from, std::size_t size, float *to) {
    Lanes most = zero();
    for (std::size_t d = 0; d < size; d += lane_count)
        most = max(abs(load_part(from + d, size - d < lane_count ? size - d : lane_count)), most);
    const float amax = largest(most);
    const bool none = amax < 1e-30f;
    const Lanes factor = set1(none ? 0.0f : 127.0f / amax);
    for (std::size_t d = 0; d < size; d += lane_count) {
        const std::size_t count = size - d < lane_count ? size - d : lane_count;
        store_part(to + d, count, to_float(round_to_int(mul(load_part(from + d, count), factor))));
    }
    return none ? 0.0f : amax / 127.0f;
}

void as_cached(Cache cache, const float *from, std::size_t size, float *to, float *scale) {
    if (cache == Cache::int8) {
        *scale = to_codes(from, size, to);
        return;
    }
    for (std::size_t d = 0; d < size; d += lane_count) {
        const std::size_t count = size - d < lane_count ? size - d : lane_count;
        const Lanes x = load_part(from + d, count);
        store_part(to + d, count, cache == Cache::half ? round_to_half(x) : x);
    }
}

// The numbers that the cache will give back for `row`, in place.
void round_in_place(Cache cache, float *row, std::size_t size) {
    if (cache == Cache::single)
        return;
    float scale = 1.0f;
    as_cached(cache, row, size, row, &scale);
    if (cache == Cache::int8)
        for (std::size_t d = 0; d < size; ++d)
            row[d] *= scale;
}

// x / sqrt(mean of x^2 + epsilon) * norm
void norm_head(const float *from, const float *norm, float epsilon, std::size_t size, float *to) {
    Lanes squares = zero();
    for (std::size_t d = 0; d < size; d += lane_count) {
        const Lanes x = load_part(from + d, size - d < lane_count ? size - d : lane_count);
        squares = fma(x, x, squares);
    }
    float root[lane_count];
    store(root, sqrt(set1(sum(squares) / static_cast<float>(size) + epsilon)));
    const Lanes factor = set1(1.0f / root[0]);
    for (std::size_t d = 0; d < size; d += lane_count) {
        const std::size_t count = size - d < lane_count ? size - d : lane_count;
        store_part(to + d, count, mul(mul(load_part(from + d, count), factor), load_part(norm + d, count)));
    }
}

// (a, b) becomes (a cos - b sin, b cos + a sin).
void turn(float *a, float *b, const float *cos, const float *sin, std::size_t size) {
    for (std::size_t d = 0; d < size; d += lane_count) {
        const std::size_t count = size - d < lane_count ? size - d : lane_count;
        const Lanes x = load_part(a + d, count), y = load_part(b + d, count);
        const Lanes c = load_part(cos + d, count), s = load_part(sin + d, count);
        store_part(a + d, count, fnma(y, s, mul(x, c)));
        store_part(b + d, count, fma(x, s, mul(y, c)));
    }
}

// `pairs` has room for the rotary numbers.
void turn_head(const Heads &heads, std::size_t t, float *head, float *pairs) {
    const std::size_t half = heads.rotary / 2;
    const float *cos = heads.cos + t * half, *sin = heads.sin + t * half;
    if (!heads.interleaved) {
        turn(head, head + half, cos, sin, half);
        return;
    }
    for (std::size_t i = 0; i < half; ++i) {
        pairs[i] = head[2 * i];
        pairs[half + i] = head[2 * i + 1];
    }
    turn(pairs, pairs + half, cos, sin, half);
    for (std::size_t i = 0; i < half; ++i) {
        head[2 * i] = pairs[i];
        head[2 * i + 1] = pairs[half + i];
    }
}

void prepare_row(const Heads &heads, std::size_t t, float *scratch) {
    const std::size_t size = heads.size, all = heads.q_heads + 2 * heads.kv_heads;
    for (std::size_t h = 0; h < all; ++h) {
        const float *from = heads.qkv + (t * all + h) * size;
        const bool is_q = h < heads.q_heads, is_k = !is_q && h < heads.q_heads + heads.kv_heads;
        const std::size_t kv = is_q ? 0 : (h - heads.q_heads) % heads.kv_heads;
        float *to = is_q ? heads.q + (h * heads.rows + t) * size
                         : (is_k ? heads.new_k : heads.new_v) + (kv * heads.rows + t) * size;
        const float *norm = is_q ? heads.q_norm : is_k ? heads.k_norm : nullptr;
        if (norm != nullptr)
            norm_head(from, norm, heads.epsilon, size, to);
        else
            std::memcpy(to, from, size * sizeof(float));
        if (is_q || is_k)
            turn_head(heads, t, to, scratch);
        if (!is_q)
            round_in_place(heads.cache, to, size);
    }
}

} // namespace
} // namespace paceline
