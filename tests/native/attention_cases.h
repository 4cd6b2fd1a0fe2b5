// Random attention problems, their float64 answers, and the same problem with a row's path committed.
#pragma once
#include "attention.h"
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace paceline {
namespace test {

class Random { // splitmix64
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next() {
        std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }
    bool chance(std::size_t percent) { return below(100) < percent; }
    float number() { // about normal
        float sum = 0;
        for (int i = 0; i < 4; ++i)
            sum += static_cast<float>(next() >> 40) * 0x1p-24f - 0.5f;
        return sum * 1.7f;
    }

  private:
    std::uint64_t state_;
};

// A pool that deals tasks to threads of its own, last task first.
class Threads {
  public:
    explicit Threads(std::size_t count) : count_(count) {}
    Pool pool() { return {this, run}; }

  private:
    static void run(void *context, void (*task)(void *, std::size_t), std::size_t count, void *user) {
        std::atomic<std::size_t> left{count};
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < static_cast<Threads *>(context)->count_; ++i)
            threads.emplace_back([&] {
                for (std::size_t n; (n = left.fetch_sub(1)) - 1 < count;)
                    task(user, n - 1);
            });
        for (std::thread &thread : threads)
            thread.join();
    }
    std::size_t count_;
};

struct Case {
    std::size_t q_heads, kv_heads, size, committed, waiting, rows, spare;
    Cache cache;
    float scale, softcap;
    std::int64_t window;
    std::vector<float> q;              // [Hq, T, D]
    std::vector<float> k, v;           // [Hkv, keys, D]: committed, waiting, new
    std::vector<float> sinks;          // [Hq] or empty
    std::vector<std::int64_t> parents; // [W]
    bool poison_unused = false;

    std::size_t past() const { return committed + waiting; }
    std::size_t keys() const { return committed + waiting + rows; }
    std::size_t width() const { return waiting + rows; }
    std::vector<std::size_t> path(std::size_t column) const { // root first
        std::vector<std::size_t> columns{column};
        while (parents[columns.front()] >= 0)
            columns.insert(columns.begin(), static_cast<std::size_t>(parents[columns.front()]));
        return columns;
    }
    std::int64_t position(std::size_t column) const {
        return static_cast<std::int64_t>(committed + path(column).size()) - 1;
    }
};

inline std::string describe(const Case &c) {
    std::string text = "heads " + std::to_string(c.q_heads) + "/" + std::to_string(c.kv_heads) + " D " +
                       std::to_string(c.size) + " committed " + std::to_string(c.committed) + " waiting " +
                       std::to_string(c.waiting) + " rows " + std::to_string(c.rows) + " cache " +
                       std::to_string(static_cast<int>(c.cache)) + " window " + std::to_string(c.window) +
                       " softcap " + std::to_string(c.softcap) + " parents";
    for (const std::int64_t p : c.parents)
        text += " " + std::to_string(p);
    return text;
}

inline std::uint16_t half_of(float x) { // by search, so as not to share code with the kernels; half to even
    const float size = std::abs(x);
    const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const auto value = [](std::uint32_t h) {
        const int exponent = static_cast<int>(h >> 10);
        const double digits = h & 0x3ffu;
        return exponent == 0 ? std::ldexp(digits, -24) : std::ldexp(digits + 1024, exponent - 25);
    };
    std::uint32_t low = 0, high = 0x7c00; // value(high) = 65536 stands for infinity
    while (high - low > 1)
        (value((low + high) / 2) <= size ? low : high) = (low + high) / 2;
    const double below = size - value(low), above = value(high) - size;
    const bool up = above < below || (above == below && (low & 1u) != 0);
    return static_cast<std::uint16_t>(sign | (up ? high : low));
}

inline double half_value(std::uint16_t h) {
    const int exponent = h >> 10 & 31;
    const double digits = h & 0x3ffu;
    const double size = exponent == 0 ? std::ldexp(digits, -24) : std::ldexp(digits + 1024, exponent - 25);
    return (h & 0x8000u) != 0 ? -size : size;
}

struct Codes {
    std::vector<std::int8_t> codes;
    float scale;
};

inline Codes codes_of(const float *row, std::size_t size) {
    float amax = 0;
    for (std::size_t d = 0; d < size; ++d)
        amax = std::abs(row[d]) > amax ? std::abs(row[d]) : amax;
    Codes out{std::vector<std::int8_t>(size), amax / 127.0f};
    const float factor = 127.0f / amax;
    for (std::size_t d = 0; d < size; ++d)
        out.codes[d] = static_cast<std::int8_t>(std::nearbyint(row[d] * factor));
    return out;
}

// The numbers that a cache of this kind gives back.
inline std::vector<double> cached_numbers(Cache cache, const float *row, std::size_t size) {
    std::vector<double> out(row, row + size);
    if (cache == Cache::half)
        for (double &x : out)
            x = half_value(half_of(static_cast<float>(x)));
    if (cache == Cache::int8) {
        const Codes codes = codes_of(row, size);
        for (std::size_t d = 0; d < size; ++d)
            out[d] = static_cast<double>(codes.codes[d]) * static_cast<double>(codes.scale);
    }
    return out;
}

inline std::vector<double> reference(const Case &c) {
    std::vector<double> out(c.q_heads * c.rows * c.size);
    for (std::size_t h = 0; h < c.q_heads; ++h)
        for (std::size_t t = 0; t < c.rows; ++t) {
            const std::size_t kv = h / (c.q_heads / c.kv_heads);
            std::vector<std::size_t> seen;
            const std::int64_t here = c.position(c.waiting + t);
            for (std::size_t j = 0; j < c.committed; ++j)
                if (c.window == 0 || here - static_cast<std::int64_t>(j) < c.window)
                    seen.push_back(j);
            for (const std::size_t column : c.path(c.waiting + t))
                if (column < c.waiting || c.window == 0 || here - c.position(column) < c.window)
                    seen.push_back(c.committed + column);
            std::vector<double> scores;
            for (const std::size_t j : seen) {
                const std::vector<double> k =
                    cached_numbers(c.cache, &c.k[(kv * c.keys() + j) * c.size], c.size);
                double score = 0;
                for (std::size_t d = 0; d < c.size; ++d)
                    score += k[d] * static_cast<double>(c.q[(h * c.rows + t) * c.size + d]);
                score *= static_cast<double>(c.scale);
                const double cap = static_cast<double>(c.softcap);
                scores.push_back(cap != 0 ? std::tanh(score / cap) * cap : score);
            }
            double top = c.sinks.empty() ? -INFINITY : static_cast<double>(c.sinks[h]);
            for (const double s : scores)
                top = s > top ? s : top;
            double total = c.sinks.empty() ? 0 : std::exp(static_cast<double>(c.sinks[h]) - top);
            for (const double s : scores)
                total += std::exp(s - top);
            for (std::size_t i = 0; i < seen.size(); ++i) {
                const std::vector<double> v =
                    cached_numbers(c.cache, &c.v[(kv * c.keys() + seen[i]) * c.size], c.size);
                for (std::size_t d = 0; d < c.size; ++d)
                    out[(h * c.rows + t) * c.size + d] += std::exp(scores[i] - top) / total * v[d];
            }
        }
    return out;
}

enum class Form { parents, mask };

// A typed cache [Hkv, S, D] with its scales, filled as the runtime fills it.
struct Stored {
    std::vector<float> single, scales;
    std::vector<std::uint16_t> half;
    std::vector<std::int8_t> codes;
    const void *data;
};

inline Stored stored(const Case &c, const std::vector<float> &numbers) {
    const std::size_t capacity = c.past() + c.spare, all = c.kv_heads * capacity * c.size;
    Stored s;
    const float unused = c.poison_unused ? NAN : 0.25f;
    s.single.assign(c.cache == Cache::single ? all : 0, unused);
    s.half.assign(c.cache == Cache::half ? all : 0, c.poison_unused ? 0x7e00 : 0x3c00);
    s.codes.assign(c.cache == Cache::int8 ? all : 0, 77);
    s.scales.assign(c.kv_heads * capacity, unused);
    for (std::size_t h = 0; h < c.kv_heads; ++h)
        for (std::size_t j = 0; j < c.past(); ++j) {
            const float *from = &numbers[(h * c.keys() + j) * c.size];
            const std::size_t to = (h * capacity + j) * c.size;
            for (std::size_t d = 0; d < c.size && c.cache == Cache::single; ++d)
                s.single[to + d] = from[d];
            for (std::size_t d = 0; d < c.size && c.cache == Cache::half; ++d)
                s.half[to + d] = half_of(from[d]);
            if (c.cache == Cache::int8) {
                const Codes codes = codes_of(from, c.size);
                std::memcpy(&s.codes[to], codes.codes.data(), c.size);
                s.scales[h * capacity + j] = codes.scale;
            }
        }
    s.data = c.cache == Cache::single ? static_cast<const void *>(s.single.data())
             : c.cache == Cache::half ? static_cast<const void *>(s.half.data())
                                      : static_cast<const void *>(s.codes.data());
    return s;
}

// `strange`, if there are some, take the place of the positions of the new rows.
inline std::vector<float> attended(const Case &c, Form form, const Pool &pool,
                                   const std::vector<std::int64_t> &strange = {}) {
    const Stored k = stored(c, c.k), v = stored(c, c.v);
    std::vector<std::int64_t> positions;
    std::vector<std::uint8_t> mask(c.rows * c.width(), 0);
    for (std::size_t t = 0; t < c.rows; ++t) {
        positions.push_back(c.position(c.waiting + t));
        for (const std::size_t column : c.path(c.waiting + t))
            mask[t * c.width() + column] = 1;
    }
    std::vector<float> out(c.q_heads * c.rows * c.size, NAN);
    Attention call{};
    call.q_heads = c.q_heads;
    call.kv_heads = c.kv_heads;
    call.rows = c.rows;
    call.size = c.size;
    call.q = {c.q.data(), c.rows * c.size, c.size};
    call.k_new = {c.k.data() + c.past() * c.size, c.keys() * c.size, c.size};
    call.v_new = {c.v.data() + c.past() * c.size, c.keys() * c.size, c.size};
    call.cache_k = k.data;
    call.cache_v = v.data;
    call.k_scales = c.cache == Cache::int8 ? k.scales.data() : nullptr;
    call.v_scales = c.cache == Cache::int8 ? v.scales.data() : nullptr;
    call.cache_rows = c.past() + c.spare;
    call.past = c.past();
    call.cache = c.cache;
    call.mask = form == Form::mask ? mask.data() : nullptr;
    call.parents = form == Form::parents ? c.parents.data() : nullptr;
    call.width = c.width();
    call.positions = strange.empty() ? positions.data() : strange.data();
    call.sinks = c.sinks.empty() ? nullptr : c.sinks.data();
    call.scale = c.scale;
    call.softcap = c.softcap;
    call.window = c.window;
    call.out = out.data();
    call.out_head_stride = c.rows * c.size;
    call.out_row_stride = c.size;
    attend(call, pool);
    return out;
}

// The same with some keys and some rows: `keys` (numbers of c's keys, in order) become the committed ones and
// the rows.
inline Case chosen(const Case &c, const std::vector<std::size_t> &keys, std::size_t rows,
                   std::size_t first_row) {
    Case out = c;
    out.rows = rows;
    out.q.clear();
    out.k.clear();
    out.v.clear();
    const auto copy = [&](std::vector<float> &to, const std::vector<float> &from, std::size_t row) {
        const auto at = from.begin() + static_cast<std::ptrdiff_t>(row * c.size);
        to.insert(to.end(), at, at + static_cast<std::ptrdiff_t>(c.size));
    };
    for (std::size_t h = 0; h < c.q_heads; ++h)
        for (std::size_t t = 0; t < rows; ++t)
            copy(out.q, c.q, h * c.rows + first_row + t);
    for (std::size_t h = 0; h < c.kv_heads; ++h)
        for (const std::size_t key : keys) {
            copy(out.k, c.k, h * c.keys() + key);
            copy(out.v, c.v, h * c.keys() + key);
        }
    return out;
}

inline Case committed_path(const Case &c, std::size_t t) {
    std::vector<std::size_t> keys;
    for (std::size_t j = 0; j < c.committed; ++j)
        keys.push_back(j);
    for (const std::size_t column : c.path(c.waiting + t))
        keys.push_back(c.committed + column);
    Case out = chosen(c, keys, 1, t);
    out.committed = keys.size() - 1;
    out.waiting = 0;
    out.parents = {-1};
    return out;
}

inline Case first_rows(const Case &c, std::size_t rows) {
    std::vector<std::size_t> keys(c.past() + rows);
    for (std::size_t j = 0; j < keys.size(); ++j)
        keys[j] = j;
    Case out = chosen(c, keys, rows, 0);
    out.parents.resize(c.waiting + rows);
    return out;
}

inline Case random_case(Random &random) {
    const std::size_t sizes[] = {64, 64, 128, 80, 16, 40, 5, 96}, groups[] = {1, 1, 2, 4, 4, 7, 8};
    Case c{};
    c.kv_heads = 1 + random.below(3);
    c.q_heads = c.kv_heads * groups[random.below(7)];
    c.size = sizes[random.below(8)];
    c.committed = random.chance(20)   ? random.below(3)
                  : random.chance(50) ? random.below(150)
                                      : random.below(420);
    c.waiting = random.chance(40) ? random.below(20) : 0;
    c.rows = random.chance(30)   ? 1 + random.below(3)
             : random.chance(80) ? 1 + random.below(24)
                                 : 1 + random.below(90);
    c.spare = random.below(70) + c.rows;
    c.cache = static_cast<Cache>(random.below(3));
    c.scale = random.chance(50) ? 0.125f : 1.0f / std::sqrt(static_cast<float>(c.size));
    c.softcap = random.chance(20) ? 5.0f : 0.0f;
    const std::size_t shape = random.below(3); // a chain, a chain with some branches, any tree
    for (std::size_t column = 0; column < c.width(); ++column) {
        const bool line = shape == 0 || (shape == 1 && random.chance(80));
        c.parents.push_back(line ? static_cast<std::int64_t>(column) - 1
                                 : static_cast<std::int64_t>(random.below(column + 1)) - 1);
    }
    std::size_t deepest = 0;
    for (std::size_t column = 0; column < c.width(); ++column)
        deepest = std::max(deepest, c.path(column).size());
    if (random.chance(40)) // a caller keeps a tree's depth below the window while rows wait; see visible()
        c.window = static_cast<std::int64_t>((c.waiting > 0 ? deepest : 1) + random.below(200));
    const auto fill = [&](std::vector<float> &to, std::size_t count) {
        const float size = random.chance(10) ? 4.0f : 1.0f;
        for (std::size_t i = 0; i < count; ++i)
            to.push_back(random.number() * size);
    };
    fill(c.q, c.q_heads * c.rows * c.size);
    fill(c.k, c.kv_heads * c.keys() * c.size);
    fill(c.v, c.kv_heads * c.keys() * c.size);
    if (random.chance(25))
        fill(c.sinks, c.q_heads);
    return c;
}

} // namespace test
} // namespace paceline
