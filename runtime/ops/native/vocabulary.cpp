// Work on rows outside ONNX Runtime: as wide as a vocabulary, see runtime/ops/vocabulary.py, and of the
// cache, see runtime/ops/halves.py.
#include "vocabulary.h"
#include "isa.h"
#include <algorithm>
#include <exception>
#include <limits>
#include <vector>

#if defined(_WIN32)
#define PACELINE_EXPORT extern "C" __declspec(dllexport)
#else
#define PACELINE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace paceline {
namespace {

constexpr float lowest = -std::numeric_limits<float>::infinity();

const RowKernels &row_kernels() {
    switch (active()) {
#if defined(__x86_64__) || defined(_M_X64)
    case Level::avx2:
    case Level::avxvnni:
        return avx2_rows;
    case Level::avx512vnni:
        return avx512_rows;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Level::neon:
    case Level::i8mm:
        return neon_rows;
#endif
    default:
        return portable_rows;
    }
}

struct Entry {
    float value;
    std::int64_t id;
};

bool before(const Entry &a, const Entry &b) { return a.value != b.value ? a.value > b.value : a.id < b.id; }

std::vector<Entry> best_of(const float *row, std::size_t size, std::size_t k);

// A number that the k best entries reach: the k-th largest of the maxima of blocks, which are written to
// `best`. Where there are too few blocks it is -inf.
float floor_under(const float *row, std::size_t size, std::size_t k, std::size_t block,
                  std::vector<float> &best) {
    best.assign((size + block - 1) / block, lowest);
    row_kernels().maxima(row, size / block, block, best.data());
    for (std::size_t i = size / block * block; i < size; ++i)
        best.back() = row[i] > best.back() ? row[i] : best.back();
    return best.size() < k ? lowest : best_of(best.data(), best.size(), k)[k - 1].value;
}

// The k best entries, the k-th at its place and better ones before it in any order; then others.
std::vector<Entry> best_of(const float *row, std::size_t size, std::size_t k) {
    const std::size_t block = size >= 256 * k ? 64 : size >= 64 * k ? 16 : size;
    std::vector<float> best(1, lowest);
    const float floor = block == size ? lowest : floor_under(row, size, k, block, best);
    // Fewer than k blocks hold anything above the floor, and of the entries that equal it the first k
    // suffice.
    std::vector<Entry> found;
    std::size_t equal = 0;
    for (std::size_t b = 0; b < best.size(); ++b) {
        if (best[b] < floor)
            continue;
        for (std::size_t i = b * block, end = std::min(i + block, size); i < end; ++i) {
            const float value = row[i] > lowest ? row[i] : lowest;
            if (value > floor || (value == floor && equal++ < k))
                found.push_back({value, static_cast<std::int64_t>(i)});
        }
    }
    std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(k - 1), found.end(), before);
    return found;
}

} // namespace
} // namespace paceline

// The k best of each row, 1 <= k <= size: largest first, ties to the lowest id, NaN as -inf.
// rows [count, size]; ids and values [count, k]. 0, or 1 where memory ran out.
PACELINE_EXPORT int paceline_top_k(const float *rows, std::size_t count, std::size_t size, std::size_t k,
                                   std::int64_t *ids, float *values) {
    try {
        for (std::size_t r = 0; r < count; ++r) {
            auto found = paceline::best_of(rows + r * size, size, k);
            std::sort(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(k), paceline::before);
            for (std::size_t i = 0; i < k; ++i) {
                ids[r * k + i] = found[i].id;
                values[r * k + i] = found[i].value;
            }
        }
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}

// The k best of each row as above, and the sum of exp((x - best) * scale) over each row. sums [count].
PACELINE_EXPORT int paceline_best(const float *rows, std::size_t count, std::size_t size, std::size_t k,
                                  float scale, std::int64_t *ids, float *values, double *sums) {
    for (std::size_t r = 0; r < count; ++r) {
        if (paceline_top_k(rows + r * size, 1, size, k, ids + r * k, values + r * k))
            return 1;
        sums[r] = paceline::row_kernels().exp_sum(rows + r * size, size, values[r * k], scale);
    }
    return 0;
}

// The k-th largest of a row, 1 <= k <= size; NaN as -inf. 0, or 1 where memory ran out.
PACELINE_EXPORT int paceline_kth_largest(const float *row, std::size_t size, std::size_t k, float *value) {
    try {
        *value = paceline::best_of(row, size, k)[k - 1].value;
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}

// Sum of exp((x - top) * scale) over a row, where top is its largest entry; NaN if any entry is NaN.
PACELINE_EXPORT double paceline_exp_sum(const float *row, std::size_t size, float top, float scale) {
    return paceline::row_kernels().exp_sum(row, size, top, scale);
}

// Which of the tokens 0 .. size - 1 have noise at or above a floor, see runtime/noise.py: writes their ids,
// ascending, and returns how many. The noise is the first 52 bits of the hash. ids [size].
PACELINE_EXPORT std::size_t paceline_noise_above(std::uint64_t key, std::size_t size, std::uint64_t floor,
                                                 std::int64_t *ids) {
    constexpr std::size_t piece = 512;
    std::uint64_t bits[piece];
    std::size_t found = 0;
    for (std::size_t first = 0; first < size; first += piece) {
        const std::size_t count = std::min(piece, size - first);
        paceline::row_kernels().noise(key, first, count, bits);
        for (std::size_t i = 0; i < count; ++i) {
            ids[found] = static_cast<std::int64_t>(first + i);
            found += bits[i] >> 12 >= floor;
        }
    }
    return found;
}

// Rounds the first `count` numbers of each plane to half precision, half to even, too large ones to infinity.
// from [planes, from_stride], to [planes, to_stride].
PACELINE_EXPORT void paceline_halves(const float *from, std::size_t planes, std::size_t from_stride,
                                     std::size_t count, std::uint16_t *to, std::size_t to_stride) {
    for (std::size_t plane = 0; plane < planes; ++plane)
        paceline::row_kernels().halves(from + plane * from_stride, count, to + plane * to_stride);
}
