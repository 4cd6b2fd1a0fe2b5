// Products on tiles with NEON and the matrix product instructions (ARMv8.2 with i8mm): 2 columns by 2 rows, 8
// k.
#include "lanes_neon.h"
#include "matmul_neon.inc.h"
#include "matmul_neon_exact.inc.h"

namespace paceline {
namespace {

// A single row is laid out for the dot product. Otherwise 16 bytes are 8 k of one row and the same 8 of the
// next; beside a last odd row there is anything.
std::size_t place(std::size_t quad, std::size_t row, std::size_t rows) {
    if (rows == 1)
        return quad;
    return (quad / 2 * ((rows + 1) / 2) + row / 2) * 4 + row % 2 * 2 + quad % 2;
}

template <int rows> struct RowPairs {
    static constexpr int pairs = (rows + 1) / 2;
    static constexpr std::size_t bytes = 16 * pairs;
    int8x16_t v[pairs];

    explicit PACELINE_INLINE RowPairs(const std::int8_t *from) {
        PACELINE_UNROLL
        for (int p = 0; p < pairs; ++p)
            v[p] = vld1q_s8(from + 16 * p);
    }
};

// A sum is (column 0, row 0), (column 0, row 1), (column 1, row 0), (column 1, row 1).
template <Kind kind_, int rows_> struct MatrixBlock {
    static constexpr Kind kind = kind_;
    static constexpr int rows = rows_, pairs = (rows + 1) / 2, groups = groups_for(rows);
    using Rows = RowPairs<rows>;
    int32x4_t s[pairs][2 * groups];

    PACELINE_INLINE void start(const std::int32_t *starts) {
        PACELINE_UNROLL
        for (int p = 0; p < pairs; ++p) {
            const std::int32_t first = starts[2 * p], second = starts[2 * p + 1 < rows ? 2 * p + 1 : 2 * p];
            const int32x2_t both = vset_lane_s32(second, vdup_n_s32(first), 1);
            PACELINE_UNROLL
            for (int i = 0; i < 2 * groups; ++i)
                s[p][i] = kind == Kind::codes8 ? vdupq_n_s32(0) : vcombine_s32(both, both);
        }
    }

    PACELINE_INLINE void add(int g, const Columns<kind> &columns, const Rows &codes) {
        const int32x4_t quad_0 = vreinterpretq_s32_s8(columns.quad_0);
        const int32x4_t quad_1 = vreinterpretq_s32_s8(columns.quad_1);
        const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(quad_0, quad_1)); // 8 k of columns 0 and 1
        const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(quad_0, quad_1));
        PACELINE_UNROLL
        for (int p = 0; p < pairs; ++p) {
            s[p][2 * g] = vmmlaq_s32(s[p][2 * g], low, codes.v[p]);
            s[p][2 * g + 1] = vmmlaq_s32(s[p][2 * g + 1], high, codes.v[p]);
        }
    }

    PACELINE_INLINE float32x4_t total(int r, int g) const {
        const int32x4_t low = s[r / 2][2 * g], high = s[r / 2][2 * g + 1];
        return vcvtq_f32_s32(r % 2 == 0 ? vuzp1q_s32(low, high) : vuzp2q_s32(low, high));
    }
};

template <Kind kind> void multiply_kind(const TileRun &run) {
    static constexpr Run by_rows[most_rows_here] = {
        multiply_tiles<DotBlock<kind, 1>>,    multiply_tiles<MatrixBlock<kind, 2>>,
        multiply_tiles<MatrixBlock<kind, 3>>, multiply_tiles<MatrixBlock<kind, 4>>,
        multiply_tiles<MatrixBlock<kind, 5>>, multiply_tiles<MatrixBlock<kind, 6>>,
        multiply_tiles<MatrixBlock<kind, 7>>, multiply_tiles<MatrixBlock<kind, 8>>,
    };
    by_rows[run.group->rows - 1](run);
}

} // namespace
} // namespace paceline

#include "matmul_kinds.inc.h"
#include "matmul_rows.inc.h"

namespace paceline {

const TileKernels i8mm_tiles = {most_rows_here, most_exact_rows, place,          normalise, quantise,
                                spread,         multiply,        multiply_exact, finish};

} // namespace paceline
