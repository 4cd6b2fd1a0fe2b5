// Products on tiles with NEON and the dot product instructions (ARMv8.2 with dotprod).
#include "lanes_neon.h"
#include "matmul_neon.inc.h"
#include "matmul_neon_exact.inc.h"

namespace paceline {
namespace {

std::size_t place(std::size_t quad, std::size_t row, std::size_t rows) { return quad * rows + row; }

template <Kind kind> void multiply_kind(const TileRun &run) {
    static constexpr Run by_rows[most_rows_here] = {
        multiply_tiles<DotBlock<kind, 1>>, multiply_tiles<DotBlock<kind, 2>>,
        multiply_tiles<DotBlock<kind, 3>>, multiply_tiles<DotBlock<kind, 4>>,
        multiply_tiles<DotBlock<kind, 5>>, multiply_tiles<DotBlock<kind, 6>>,
        multiply_tiles<DotBlock<kind, 7>>, multiply_tiles<DotBlock<kind, 8>>,
    };
    by_rows[run.group->rows - 1](run);
}

} // namespace
} // namespace paceline

#include "matmul_kinds.inc.h"
#include "matmul_rows.inc.h"

namespace paceline {

const TileKernels neon_tiles = {most_rows_here, most_exact_rows, place,          normalise, quantise,
                                spread,         multiply,        multiply_exact, finish};

} // namespace paceline
