// What an instruction set contributes to the work on rows of logits in vocabulary.cpp.
#pragma once
#include "isa.h"
#include <cstddef>
#include <cstdint>

namespace paceline {

struct RowKernels {
    // The largest of each `block` numbers, NaN counting for nothing: -inf where there is nothing else. block
    // is 16 or 64.
    void (*maxima)(const float *row, std::size_t blocks, std::size_t block, float *best);
    // Sum of exp((x - top) * scale); NaN if any x is NaN.
    double (*exp_sum)(const float *row, std::size_t size, float top, float scale);
    // Hashes of the tokens first .. first + count - 1 (runtime/noise.py), all 64 bits.
    void (*noise)(std::uint64_t key, std::size_t first, std::size_t count, std::uint64_t *bits);
    // Numbers in half precision, rounded half to even.
    void (*halves)(const float *from, std::size_t count, std::uint16_t *to);
};

extern const RowKernels portable_rows, avx2_rows, avx512_rows, neon_rows;

} // namespace paceline
