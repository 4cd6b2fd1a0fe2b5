// What an x86 kernel prefetches while it reads a tile of codes: one request for each line of 64 bytes.
#pragma once
#include "inline.h"
#include "matmul_tiles.h"
#include "x86.h"

namespace paceline {
namespace {

enum class Reach { nothing, near, far };

// near: a little ahead into the nearest cache. far: into the second-level cache, what the driver hints at.
template <Reach reach> class Ahead {
  public:
    PACELINE_INLINE Ahead(const TileRun &run, std::size_t index, const std::uint8_t *weights)
        : at_(reach == Reach::near ? reinterpret_cast<const char *>(weights) + distance
                                   : run.ahead + index * (run.w->tile_bytes() / 64) * run.ahead_step),
          step_(reach == Reach::near ? 64 : run.ahead_step) {}

    PACELINE_INLINE void line() {
        if constexpr (reach == Reach::near)
            _mm_prefetch(at_, _MM_HINT_T0);
        else if constexpr (reach == Reach::far)
            _mm_prefetch(at_, _MM_HINT_T1);
        at_ += step_;
    }

  private:
    static constexpr std::size_t distance = 8 << 10;
    const char *at_;
    std::size_t step_;
};

} // namespace
} // namespace paceline
