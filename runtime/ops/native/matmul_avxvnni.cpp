// Products on tiles with AVX-VNNI: the dot product of four bytes in registers of 256 bits.
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

PACELINE_INLINE __m256i dot(__m256i sum, __m256i weights, __m256i x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, weights, x);
#else // the same instruction with the encoding of AVX-512, so that machines which have only that one can test
      // this file
    return _mm256_dpbusd_epi32(sum, weights, x);
#endif
}

// Several sums for a row hide the latency of the dot product; integer sums do not depend on the order.
template <Kind kind, int rows> struct Block {
    static constexpr int sums = rows == 1 ? 4 : rows <= 3 ? 2 : 1;
    // One row, and two of 8 bits, are best left to the hardware's own prefetcher.
    static constexpr Reach reach = rows <= (kind == Kind::codes8 ? 2 : 1) ? Reach::nothing : Reach::far;
    Ints s[sums][rows];

    PACELINE_INLINE void start(const std::int32_t *starts) {
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r) {
            s[0][r] = set1_int(starts[r]);
            PACELINE_UNROLL
            for (int i = 1; i < sums; ++i)
                s[i][r] = set1_int(0);
        }
    }

    template <std::size_t quad>
    PACELINE_INLINE void add(__m256i left, __m256i right, const std::int8_t *quads) {
        constexpr std::size_t sum = quad % sums;
        PACELINE_UNROLL
        for (int r = 0; r < rows; ++r) {
            const __m256i x = broadcast_quad(quads + 4 * r);
            s[sum][r] = {dot(s[sum][r].low, left, x), dot(s[sum][r].high, right, x)};
        }
    }

    template <std::size_t> PACELINE_INLINE void settle() {}

    PACELINE_INLINE Lanes total(int r) const {
        Ints all = s[0][r];
        PACELINE_UNROLL
        for (int i = 1; i < sums; ++i)
            all = paceline::add(all, s[i][r]);
        return to_float(all);
    }
};

} // namespace
} // namespace paceline

#include "matmul_rows.inc.h"

namespace paceline {

const TileKernels avxvnni_tiles = {6,      6,        place,          normalise, quantise,
                                   spread, multiply, multiply_exact, finish};

} // namespace paceline
