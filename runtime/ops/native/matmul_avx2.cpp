// Products on tiles with AVX2: pairs of products of bytes in 16 bits. They never saturate, which is what
// makes the sums exact: a code of 4 bits is at most 15 and an activation 127, so 8 pairs fit into 16 bits (8
// * 2 * 15 * 127 = 30480); with 8 bits one pair fits (2 * 128 * 127 = 32512).
#include "lanes_avx2.h"
#include "matmul_ahead.h"
#include "matmul_tiles.h"

namespace paceline {
namespace {

template <Kind kind, int rows> struct Block;

} // namespace
} // namespace paceline

#include "matmul_256.inc.h"

namespace paceline {
namespace {

// Sums of pairs of int16.
PACELINE_INLINE __m256i pairs(__m256i a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }

template <int rows> struct Block<Kind::codes4, rows> {
    static constexpr Reach reach = Reach::far;
    Ints s[rows];
    Ints narrow[rows]; // int16, since the last settle()

    PACELINE_INLINE void start(const std::int32_t *starts) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            s[r] = set1_int(starts[r]);
    }

    template <int line> PACELINE_INLINE void add(const std::uint8_t *weights, const std::int8_t *codes) {
        const __m256i left = load_256(weights), right = load_256(weights + 32), low = _mm256_set1_epi8(15);
        add_quad<line == 0>(_mm256_and_si256(left, low), _mm256_and_si256(right, low), codes);
        add_quad<false>(_mm256_and_si256(_mm256_srli_epi16(left, 4), low),
                        _mm256_and_si256(_mm256_srli_epi16(right, 4), low), codes + 4 * rows);
    }

    template <bool fresh>
    PACELINE_INLINE void add_quad(__m256i left, __m256i right, const std::int8_t *quads) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r) {
            const __m256i x = broadcast_quad(quads + 4 * r);
            const Ints products{_mm256_maddubs_epi16(left, x), _mm256_maddubs_epi16(right, x)};
            if constexpr (fresh)
                narrow[r] = products;
            else
                narrow[r] = {_mm256_add_epi16(narrow[r].low, products.low),
                             _mm256_add_epi16(narrow[r].high, products.high)};
        }
    }

    PACELINE_INLINE void settle() {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            s[r] = paceline::add(s[r], {pairs(narrow[r].low), pairs(narrow[r].high)});
    }

    PACELINE_INLINE Lanes total(int r) const { return to_float(s[r]); }
};

// The instruction wants one unsigned side: |weight| times the activation with the weight's sign. The weight
// is the code minus the zero point here, so the sums start at 0.
template <int rows> struct Block<Kind::codes8, rows> {
    // One or two rows are best left to the hardware's own prefetcher.
    static constexpr Reach reach = rows <= 2 ? Reach::nothing : Reach::far;
    Ints s[rows];

    PACELINE_INLINE void start(const std::int32_t *) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            s[r] = set1_int(0);
    }

    template <int line> PACELINE_INLINE void add(const std::uint8_t *weights, const std::int8_t *codes) {
        const __m256i zero_point = _mm256_set1_epi8(-128);
        const __m256i left = _mm256_xor_si256(load_256(weights), zero_point);
        const __m256i right = _mm256_xor_si256(load_256(weights + 32), zero_point);
        const __m256i left_size = _mm256_abs_epi8(left), right_size = _mm256_abs_epi8(right);
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r) {
            const __m256i x = broadcast_quad(codes + 4 * r);
            s[r] = paceline::add(s[r], {pairs(_mm256_maddubs_epi16(left_size, _mm256_sign_epi8(x, left))),
                                        pairs(_mm256_maddubs_epi16(right_size, _mm256_sign_epi8(x, right)))});
        }
    }

    PACELINE_INLINE void settle() {}

    PACELINE_INLINE Lanes total(int r) const { return to_float(s[r]); }
};

} // namespace
} // namespace paceline

#include "matmul_rows.inc.h"

namespace paceline {

const TileKernels avx2_tiles = {4, 6, place, normalise, quantise, spread, multiply, multiply_exact, finish};

} // namespace paceline
