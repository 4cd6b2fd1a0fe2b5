// How codes lie in a tile: units of some quads, a quad being 4 consecutive k of 16 columns, 64 bytes when
// unpacked.
#pragma once
#include "matmul.h"

namespace paceline {
namespace {

// A unit is lines of 64 bytes. Below 8 bits a line of low bits holds two quads; before those lines stands,
// with 5 and 6 bits, one line of the bits above: `more` bits of each quad, the first quad's lowest.
template <Kind kind> struct Unit {
    static constexpr unsigned more = kind == Kind::codes8 ? 0 : bits_in(kind) - 4;
    static constexpr std::size_t quads = kind == Kind::codes8 ? 1 : more == 0 ? 2 : 8 / more;
    static constexpr std::size_t first = more == 0 ? 0 : 64; // bytes before the low bits
    static constexpr std::size_t bytes = quads * 8 * bits_in(kind);
    static constexpr std::size_t k = 4 * quads;

    // Byte `at` (0 to 63) of quad `quad` of the unit.
    static int code(const std::uint8_t *unit, std::size_t quad, std::size_t at) {
        if constexpr (kind == Kind::codes8)
            return unit[at];
        const int low = unit[first + quad / 2 * 64 + at] >> (quad % 2 * 4) & 15;
        return more == 0 ? low : (unit[at] >> (quad * more) & ((1 << more) - 1)) << 4 | low;
    }
};

} // namespace
} // namespace paceline
