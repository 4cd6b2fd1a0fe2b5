// Rows as wide as a vocabulary.
#pragma once
#include "checksum.h"
#include "draws.h"
#include <vector>

extern "C" {
int paceline_top_k(const float *rows, std::size_t count, std::size_t size, std::size_t k, std::int64_t *ids,
                   float *values);
double paceline_exp_sum(const float *row, std::size_t size, float top, float scale);
std::size_t paceline_noise_above(std::uint64_t key, std::size_t size, std::uint64_t floor, std::int64_t *ids);
}

namespace paceline {

inline void vocabulary_case(std::size_t number) {
    Random random{number * 15485863 + 3};
    const std::size_t size = 1 + random.below(random.chance(3) ? 5000 : 300),
                      k = 1 + random.below(size < 40 ? size : 40);
    const std::vector<float> row = numbers(random, size);
    std::vector<std::int64_t> ids(k), loud(size);
    std::vector<float> values(k);
    paceline_top_k(row.data(), 1, size, k, ids.data(), values.data());
    const double total = paceline_exp_sum(row.data(), size, values[0], 2.0f);
    loud.resize(paceline_noise_above(random.next(), size, std::uint64_t{1} << 51, loud.data()));

    Checksum sum;
    sum.add_bytes(ids.data(), ids.size() * sizeof ids[0]);
    sum.add(values);
    sum.add_bytes(&total, sizeof total);
    sum.add_bytes(loud.data(), loud.size() * sizeof loud[0]);
    sum.print("vocabulary", number);
}

} // namespace paceline
