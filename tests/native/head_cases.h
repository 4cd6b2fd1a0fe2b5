// Random heads to prepare and their float64 answers.
#pragma once
#include "attention_cases.h"

namespace paceline {
namespace test {

struct HeadCase {
    std::size_t q_heads, kv_heads, rows, size, rotary;
    bool interleaved;
    Cache cache;
    std::vector<float> qkv, cos, sin, q_norm, k_norm;
};

struct Prepared {
    std::vector<float> q, k, v;
};

inline HeadCase random_heads(Random &random) {
    const std::size_t sizes[] = {64, 128, 80, 6, 32};
    HeadCase c{};
    c.kv_heads = 1 + random.below(3);
    c.q_heads = c.kv_heads * (1 + random.below(4));
    c.rows = 1 + random.below(9);
    c.size = sizes[random.below(5)];
    c.rotary = random.chance(60) ? c.size : 2 * random.below(c.size / 2 + 1);
    c.interleaved = random.chance(40);
    c.cache = static_cast<Cache>(random.below(3));
    for (std::size_t i = 0; i < c.rows * (c.q_heads + 2 * c.kv_heads) * c.size; ++i)
        c.qkv.push_back(random.number());
    for (std::size_t i = 0; i < c.rows * c.rotary / 2; ++i) {
        const float angle = random.number() * 3;
        c.cos.push_back(std::cos(angle));
        c.sin.push_back(std::sin(angle));
    }
    for (std::size_t d = 0; random.chance(50) && d == 0;)
        for (; d < c.size; ++d) {
            c.q_norm.push_back(random.number());
            c.k_norm.push_back(random.number());
        }
    return c;
}

inline Prepared prepared(const HeadCase &c, const Pool &pool) {
    Prepared out;
    out.q.assign(c.q_heads * c.rows * c.size, NAN);
    out.k.assign(c.kv_heads * c.rows * c.size, NAN);
    out.v = out.k;
    Heads heads{};
    heads.qkv = c.qkv.data();
    heads.q_heads = c.q_heads;
    heads.kv_heads = c.kv_heads;
    heads.rows = c.rows;
    heads.size = c.size;
    heads.cos = c.cos.data();
    heads.sin = c.sin.data();
    heads.rotary = c.rotary;
    heads.interleaved = c.interleaved;
    heads.q_norm = c.q_norm.empty() ? nullptr : c.q_norm.data();
    heads.k_norm = c.k_norm.empty() ? nullptr : c.k_norm.data();
    heads.epsilon = 1e-5f;
    heads.cache = c.cache;
    heads.q = out.q.data();
    heads.new_k = out.k.data();
    heads.new_v = out.v.data();
    prepare_heads(heads, pool);
    return out;
}

// One head in float64, before the cache rounds it.
inline std::vector<double> one_head(const HeadCase &c, std::size_t t, std::size_t h,
                                    const std::vector<float> &norm, bool turned) {
    const float *from = &c.qkv[(t * (c.q_heads + 2 * c.kv_heads) + h) * c.size];
    std::vector<double> x(from, from + c.size);
    if (!norm.empty()) {
        double squares = 0;
        for (const double y : x)
            squares += y * y;
        for (std::size_t d = 0; d < c.size; ++d)
            x[d] *= static_cast<double>(norm[d]) / std::sqrt(squares / static_cast<double>(c.size) + 1e-5);
    }
    const std::size_t half = c.rotary / 2;
    for (std::size_t i = 0; i < half && turned; ++i) {
        const std::size_t a = c.interleaved ? 2 * i : i, b = c.interleaved ? 2 * i + 1 : half + i;
        const double cos = static_cast<double>(c.cos[t * half + i]),
                     sin = static_cast<double>(c.sin[t * half + i]);
        const double first = x[a] * cos - x[b] * sin, second = x[b] * cos + x[a] * sin;
        x[a] = first;
        x[b] = second;
    }
    return x;
}

// The largest error, in units of the cache's own rounding for keys and values where that is coarser than
// 1e-5.
inline double head_error(const HeadCase &c, const Prepared &out) {
    double worst = 0;
    for (std::size_t h = 0; h < c.q_heads + 2 * c.kv_heads; ++h)
        for (std::size_t t = 0; t < c.rows; ++t) {
            const bool is_q = h < c.q_heads, is_k = !is_q && h < c.q_heads + c.kv_heads;
            const std::vector<double> wanted = one_head(c, t, h,
                                                        is_q   ? c.q_norm
                                                        : is_k ? c.k_norm
                                                               : std::vector<float>{},
                                                        is_q || is_k);
            const std::size_t kv = is_q ? 0 : (h - c.q_heads) % c.kv_heads;
            const float *got = is_q ? &out.q[(h * c.rows + t) * c.size]
                                    : &(is_k ? out.k : out.v)[(kv * c.rows + t) * c.size];
            double amax = 0;
            for (const double x : wanted)
                amax = std::max(amax, std::abs(x));
            const double step = is_q || c.cache == Cache::single ? 0
                                : c.cache == Cache::half         ? amax / 2000
                                                                 : amax / 250;
            for (std::size_t d = 0; d < c.size; ++d)
                worst = std::max(worst, std::abs(static_cast<double>(got[d]) - wanted[d]) - step);
        }
    return worst;
}

} // namespace test
} // namespace paceline
