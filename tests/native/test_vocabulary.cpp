// Fuzzed rows of logits through every instruction set of this processor, against sorting and against one
// another. test_vocabulary [ROWS]
#include "draws.h"
#include "isa.h"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

extern "C" {
int paceline_top_k(const float *rows, std::size_t count, std::size_t size, std::size_t k, std::int64_t *ids,
                   float *values);
int paceline_kth_largest(const float *row, std::size_t size, std::size_t k, float *value);
double paceline_exp_sum(const float *row, std::size_t size, float top, float scale);
std::size_t paceline_noise_above(std::uint64_t key, std::size_t size, std::uint64_t floor, std::int64_t *ids);
}

namespace {

using namespace paceline;

constexpr Level levels[] = {Level::portable,   Level::avx2, Level::avxvnni,
                            Level::avx512vnni, Level::neon, Level::i8mm};
constexpr float infinity = std::numeric_limits<float>::infinity();
int failures = 0;

void expect(bool held, const char *what, Level level, std::size_t row) {
    if (held)
        return;
    std::printf("FAILED: %s, level %s, row %zu\n", what, name_of(level), row);
    ++failures;
}

// Few sizes in half of the rows, so that many entries tie; NaN, infinities and zeros of both signs.
std::vector<float> draw_row(Random &random) {
    std::vector<float> row = numbers(random, 1 + random.below(random.chance(4) ? 20000 : 700));
    const bool coarse = random.chance(2);
    const float special[] = {std::nanf(""), -infinity, infinity, 0.0f, -0.0f};
    for (float &value : row) {
        value = coarse ? std::floor(value) : value;
        if (random.chance(30))
            value = special[random.below(5)];
    }
    return row;
}

std::vector<std::int64_t> sorted_ids(const std::vector<float> &row) {
    std::vector<std::int64_t> ids(row.size());
    for (std::size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<std::int64_t>(i);
    const auto size = [&](std::int64_t id) {
        const float value = row[static_cast<std::size_t>(id)];
        return std::isnan(value) ? -infinity : value;
    };
    std::stable_sort(ids.begin(), ids.end(),
                     [&](std::int64_t a, std::int64_t b) { return size(a) > size(b); });
    return ids;
}

void check_top(const std::vector<float> &row, std::size_t k, Level level, std::size_t number) {
    const std::vector<std::int64_t> wanted = sorted_ids(row);
    std::vector<std::int64_t> ids(2 * k);
    std::vector<float> values(2 * k), rows(row);
    rows.insert(rows.end(), row.begin(), row.end());
    expect(paceline_top_k(rows.data(), 2, row.size(), k, ids.data(), values.data()) == 0, "memory", level,
           number);
    bool same = true;
    for (std::size_t i = 0; i < 2 * k; ++i) {
        const float value = row[static_cast<std::size_t>(wanted[i % k])];
        const float clean = std::isnan(value) ? -infinity : value;
        same &= ids[i] == wanted[i % k] && std::memcmp(&values[i], &clean, sizeof clean) == 0;
    }
    expect(same, "top k", level, number);
    float last;
    expect(paceline_kth_largest(row.data(), row.size(), k, &last) == 0 && !(last < values[k - 1]) &&
               !(last > values[k - 1]),
           "k-th largest", level, number);
}

// The portable result, which the other levels must have bit for bit, is first compared with doubles.
void check_sum(std::vector<float> row, Level level, std::size_t number, double &portable) {
    double wanted = 0;
    for (float &value : row) {
        value = value < infinity ? value : 1.0f; // also a NaN
        wanted += std::exp((static_cast<double>(value) - 4.0) * 1.5);
    }
    const double found = paceline_exp_sum(row.data(), row.size(), 4.0f, 1.5f);
    if (level == Level::portable)
        portable = found;
    expect(std::fabs(found - wanted) <= 2e-6 * wanted, "sum of exponentials", level, number);
    expect(std::memcmp(&found, &portable, sizeof found) == 0, "bits of the sum", level, number);
    row[row.size() / 2] = std::nanf("");
    expect(std::isnan(paceline_exp_sum(row.data(), row.size(), 4.0f, 1.5f)), "sum with a NaN", level, number);
}

void check_noise(std::size_t size, std::uint64_t key, Level level, std::size_t number) {
    std::vector<std::int64_t> ids(size), wanted;
    const std::uint64_t floor = key >> 12;
    for (std::size_t i = 0; i < size; ++i) {
        std::uint64_t x = i * 0xBB67AE8584CAA73Bu + key;
        x = (x ^ (x >> 32)) * 0x3C6EF372FE94F82Bu;
        x = (x ^ (x >> 29)) * 0xA54FF53A5F1D36F1u;
        x = (x ^ (x >> 31)) * 0x510E527FADE682D1u;
        if (x >> 12 >= floor)
            wanted.push_back(static_cast<std::int64_t>(i));
    }
    ids.resize(paceline_noise_above(key, size, floor, ids.data()));
    expect(ids == wanted, "noise", level, number);
}

} // namespace

int main(int count, char **arguments) {
    const std::size_t rows = count > 1 ? std::strtoul(arguments[1], nullptr, 10) : 100;
    Random random{7};
    for (std::size_t number = 0; number < rows; ++number) {
        const std::vector<float> row = draw_row(random);
        const std::size_t k =
            1 + random.below(random.chance(5) ? row.size() : std::min<std::size_t>(row.size(), 50));
        const std::uint64_t key = random.next();
        double portable = 0;
        for (const Level level : levels) {
            if (!supported(level) || !use(level))
                continue;
            check_top(row, k, level, number);
            check_sum(row, level, number, portable);
            check_noise(row.size(), key, level, number);
        }
    }
    std::printf("%zu rows, %d failures\n", rows, failures);
    return failures == 0 ? 0 : 1;
}
