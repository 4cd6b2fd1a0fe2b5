// Rows of an embedding table that is stored as the packed matrix of the output layer: one column for each id.
#include "lanes_portable.h"
#include "matmul.h"

namespace paceline {
namespace {

// Column `column` of the tile at `tile`, number k, without its scale.
float weight_at(const PackedMatrix &w, const std::uint8_t *tile, std::size_t column, std::size_t k) {
    std::uint16_t half;
    float single;
    switch (w.kind) {
    case Kind::codes4: {
        const std::uint8_t both = tile[k / 8 * 64 + 4 * column + k % 4];
        return static_cast<float>((k % 8 < 4 ? both & 15 : both >> 4) - 8);
    }
    case Kind::codes8:
        return static_cast<float>(tile[k / 4 * 64 + 4 * column + k % 4] - 128);
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
            const float scale =
                w.block == 0
                    ? 1.0f
                    : float_of_half(word_at(w.scales, (tile * w.blocks() + k / block) * 16 + column));
            out[i * w.k + k] = weight * scale;
        }
    }
}

} // namespace paceline
