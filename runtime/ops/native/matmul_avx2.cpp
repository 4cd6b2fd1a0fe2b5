// Products on tiles with AVX2: pairs of products of bytes in 16 bits. They never saturate, which is what
// makes the sums exact: a code of 4 bits is at most 15 and an activation 127, so 8 pairs fit into 16 bits (8
// * 2 * 15 * 127 = 30480), 4 of 5 bits (31496), 2 of 6 bits (32004); with 8 bits one pair fits (2 * 128 * 127
// = 32512).
#include "lanes_avx2.h"
#include "matmul_ahead.h"
#include "matmul_tiles.h"
#include "matmul_unit.h"

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

template <Kind kind, int rows> struct Block {
    static constexpr Reach reach = Reach::far;
    static constexpr std::size_t fitting = kind == Kind::codes4 ? 8 : kind == Kind::codes5 ? 4 : 2; // pairs
    Ints s[rows];
    Ints narrow[rows]; // int16, of at most `fitting` quads

    PACELINE_INLINE void start(const std::int32_t *starts) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            s[r] = set1_int(starts[r]);
    }

    template <std::size_t quad>
    PACELINE_INLINE void add(__m256i left, __m256i right, const std::int8_t *quads) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r) {
            const __m256i x = broadcast_quad(quads + 4 * r);
            const Ints products{_mm256_maddubs_epi16(left, x), _mm256_maddubs_epi16(right, x)};
            if constexpr (quad % fitting == 0)
                narrow[r] = products;
            else
                narrow[r] = {_mm256_add_epi16(narrow[r].low, products.low),
                             _mm256_add_epi16(narrow[r].high, products.high)};
        }
        if constexpr (quad % fitting == fitting - 1)
            widen();
    }

    PACELINE_INLINE void widen() {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r)
            s[r] = paceline::add(s[r], {pairs(narrow[r].low), pairs(narrow[r].high)});
    }

    template <std::size_t quads> PACELINE_INLINE void settle() {
        if constexpr (quads % fitting != 0)
            widen();
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

    template <std::size_t>
    PACELINE_INLINE void add(__m256i left_codes, __m256i right_codes, const std::int8_t *codes) {
        const __m256i zero_point = _mm256_set1_epi8(-128);
        const __m256i left = _mm256_xor_si256(left_codes, zero_point);
        const __m256i right = _mm256_xor_si256(right_codes, zero_point);
        const __m256i left_size = _mm256_abs_epi8(left), right_size = _mm256_abs_epi8(right);
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r) {
            const __m256i x = broadcast_quad(codes + 4 * r);
            s[r] = paceline::add(s[r], {pairs(_mm256_maddubs_epi16(left_size, _mm256_sign_epi8(x, left))),
                                        pairs(_mm256_maddubs_epi16(right_size, _mm256_sign_epi8(x, right)))});
        }
    }

    template <std::size_t> PACELINE_INLINE void settle() {}

    PACELINE_INLINE Lanes total(int r) const { return to_float(s[r]); }
};

} // namespace
} // namespace paceline

#include "matmul_rows.inc.h"

namespace paceline {

const TileKernels avx2_tiles = {4, 6, place, normalise, quantise, spread, multiply, multiply_exact, finish};

} // namespace paceline
