// Rows of an embedding table that is stored as the packed matrix of the output layer: one column for each id.
#include "lanes_portable.h"
#include "matmul_unit.h"

namespace paceline {
namespace {

template <Kind kind>
float code_at(const PackedMatrix &w, const std::uint8_t *tile, std::size_t column, std::size_t k) {
    const std::size_t quad = k / 4;
    const std::uint8_t *unit = tile + quad / Unit<kind>::quads * Unit<kind>::bytes;
    return static_cast<float>(Unit<kind>::code(unit, quad % Unit<kind>::quads, 4 * column + k % 4) -
                              w.zero_point());
}

// Column `column` of the tile at `tile`, number k, without its scale and minimum.
float weight_at(const PackedMatrix &w, const std::uint8_t *tile, std::size_t column, std::size_t k) {
    std::uint16_t half;
    float single;
    switch (w.kind) {
    case Kind::codes4:
        return code_at<Kind::codes4>(w, tile, column, k);
    case Kind::codes5:
        return code_at<Kind::codes5>(w, tile, column, k);
    case Kind::codes6:
        return code_at<Kind::codes6>(w, tile, column, k);
    case Kind::codes8:
        return code_at<Kind::codes8>(w, tile, column, k);
    case Kind::single:
        std::memcpy(&single, tile + 4 * (k * 16 + column), sizeof single);
        return single;
    default:
        std::memcpy(&half, tile + 2 * (k * 16 + column), sizeof half);
        return w.kind == Kind::half ? float_of_half(half) : of_bits(static_cast<std::uint32_t>(half) << 16);
    }
}

} // namespace

void embed(const std::int64_t *ids, std::size_t count, const PackedMatrix &w, float *out) {
    const std::size_t block = w.block == 0 ? w.k : w.block;
    for (std::size_t i = 0; i < count; ++i) {
        const auto id = static_cast<std::size_t>(ids[i]);
        const std::size_t tile = id / 16, column = id % 16;
        const auto *weights = static_cast<const std::uint8_t *>(w.weights) + tile * w.tile_bytes();
        for (std::size_t k = 0; k < w.k; ++k) {
            const float weight = weight_at(w, weights, column, k);
            const std::size_t at = k / block * w.scale_line() + column;
            const float scale = w.block == 0 ? 1.0f : float_of_half(word_at(w.scales_of(tile), at));
            // Not fused: code times scale is exact in float32, so both ways would round once.
            const float scaled = weight * scale;
            out[i * w.k + k] =
                w.minima ? scaled + float_of_half(word_at(w.scales_of(tile), at + 16)) : scaled;
        }
    }
}

} // namespace paceline
