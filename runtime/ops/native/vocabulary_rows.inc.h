// The functions of vocabulary.h, written with the lanes of the unit that includes this after one lanes_*.h.
#pragma once
#include "lanes_math.inc.h"
#include "vocabulary.h"
#include <limits>

namespace paceline {
namespace {

void maxima(const float *row, std::size_t blocks, std::size_t block, float *best) {
    const Lanes lowest = set1(-std::numeric_limits<float>::infinity());
    for (std::size_t b = 0; b < blocks; ++b, row += block) {
        Lanes top = max(load(row), lowest); // a NaN gives the other one
        for (std::size_t i = 16; i < block; i += 16)
            top = max(load(row + i), top);
        best[b] = largest(top);
    }
}

double exp_sum(const float *row, std::size_t size, float top, float scale) {
    const Lanes highest = set1(top), factor = set1(scale);
    double total = 0;
    for (std::size_t piece = 0; piece < size;
         piece += 2048) { // a sum of all in float would lose the small ones
        const std::size_t end = size - piece < 2048 ? size : piece + 2048;
        Lanes sums = zero();
        std::size_t i = piece;
        for (; i + 16 <= end; i += 16)
            sums = add(sums, exp(mul(sub(load(row + i), highest), factor)));
        float rest[16];
        for (std::size_t lane = 0; lane < 16; ++lane)
            rest[lane] = i + lane < end ? row[i + lane] : -std::numeric_limits<float>::infinity();
        if (i < end)
            sums = add(sums, exp(mul(sub(load(rest), highest), factor)));
        total += static_cast<double>(sum(sums));
    }
    return total;
}

void noise(std::uint64_t key, std::size_t first, std::size_t count, std::uint64_t *bits) {
    for (std::size_t i = 0; i < count; ++i) {
        std::uint64_t x = key + (first + i) * 0xBB67AE8584CAA73Bu;
        x = (x ^ (x >> 32)) * 0x3C6EF372FE94F82Bu;
        x = (x ^ (x >> 29)) * 0xA54FF53A5F1D36F1u;
        bits[i] = (x ^ (x >> 31)) * 0x510E527FADE682D1u;
    }
}

void halves(const float *from, std::size_t count, std::uint16_t *to) {
    std::size_t i = 0;
    for (; i + 16 <= count; i += 16)
        store_half(to + i, load(from + i));
    if (i == count)
        return;
    float rest[16] = {};
    std::uint16_t rounded[16];
    for (std::size_t lane = 0; i + lane < count; ++lane)
        rest[lane] = from[i + lane];
    store_half(rounded, load(rest));
    for (std::size_t lane = 0; i + lane < count; ++lane)
        to[i + lane] = rounded[lane];
}

} // namespace
} // namespace paceline
