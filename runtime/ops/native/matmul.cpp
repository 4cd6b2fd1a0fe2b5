// The driver of products with a packed matrix: rows into groups, columns into chunks of tiles, one kernel
// call for each group and a few tiles. Nothing here changes a bit of the result: that is decided by the
// functions of matmul_tiles.h.
#include "matmul.h"
#include "matmul_scratch.h"
#include "matmul_tiles.h"
#include <algorithm>

namespace paceline {
namespace {

constexpr std::size_t chunks_in_call = 16;          // enough to even out threads of different speed
constexpr std::size_t activation_bytes = 512 << 10; // rows worked on together stay in the second-level cache
constexpr std::size_t prefetch_distance = 16 << 10;
constexpr std::size_t parallel_numbers = 1 << 17; // of x, from which several threads prepare rows

// Nanoseconds of work below which waking other threads costs more than they take over.
constexpr std::size_t parallel_work = 20000;

class Product {
  public:
    Product(const MatMul &call, const Pool &pool)
        : call_(call), pool_(pool), kernels_(*tile_kernels(active())),
          exact_(call.exact || call.w.block == 0), gated_(call.activation != Activation::none),
          half_(call.w.n / 2), whole_(gated_ && half_ % tile_columns != 0),
          most_(exact_ ? kernels_.exact_rows : kernels_.rows) {
        const std::size_t slots = (most_ + 3) / 4 * 4, k = call.w.padded_k(), blocks = call.w.blocks();
        codes_bytes_ = exact_ ? 0 : aligned(slots * k);
        starts_bytes_ = exact_ ? 0 : aligned(slots * blocks * sizeof(std::int32_t));
        x_bytes_ = exact_ ? aligned(slots * k * sizeof(float)) : 0;
        sums_bytes_ = call.w.minima ? aligned(slots * blocks * sizeof(float)) : 0;
        normed_bytes_ = call.norm ? aligned(call.w.k * sizeof(float)) : 0;
        group_bytes_ = codes_bytes_ + 2 * starts_bytes_ + x_bytes_ + sums_bytes_ + normed_bytes_;
    }

    void run() {
        thread_local Scratch scratch;
        const std::size_t row_bytes = call_.w.padded_k() * (exact_ ? sizeof(float) : 1);
        const std::size_t fitting = std::max<std::size_t>(activation_bytes / row_bytes / most_, 1) * most_;
        const std::size_t together = std::min(fitting, call_.rows), groups = (together + most_ - 1) / most_;
        memory_ =
            scratch.reserve(groups * group_bytes_ + (whole_ ? together * call_.w.n * sizeof(float) : 0));
        columns_ = reinterpret_cast<float *>(memory_ + groups * group_bytes_);
        for (first_ = 0; first_ < call_.rows; first_ += together) {
            rows_ = std::min(together, call_.rows - first_);
            groups_ = (rows_ + most_ - 1) / most_;
            prepare();
            multiply();
            if (whole_)
                gate_rows();
        }
    }

  private:
    const MatMul &call_;
    const Pool &pool_;
    const TileKernels &kernels_;
    const bool exact_, gated_;
    const std::size_t half_; // columns of y with a gate
    const bool whole_;       // the gate does not end with a tile: all columns go through a scratch
    const std::size_t most_; // rows in a group
    std::size_t codes_bytes_, starts_bytes_, x_bytes_, sums_bytes_, normed_bytes_, group_bytes_;
    char *memory_ = nullptr;                        // [groups, group_bytes]
    float *columns_ = nullptr;                      // [rows, n]
    std::size_t first_ = 0, rows_ = 0, groups_ = 0; // rows in work: first_ .. first_ + rows_ - 1

    std::size_t rows_of(std::size_t group) const {
        return rows_ / groups_ + (group < rows_ % groups_ ? 1 : 0);
    }
    std::size_t row_of(std::size_t group) const {
        return first_ + group * (rows_ / groups_) + std::min(group, rows_ % groups_);
    }

    Group group(std::size_t index) const {
        char *at = memory_ + index * group_bytes_;
        Group group{};
        group.rows = rows_of(index);
        group.codes = reinterpret_cast<std::int8_t *>(at);
        group.starts = reinterpret_cast<std::int32_t *>(at + codes_bytes_);
        group.scales = reinterpret_cast<float *>(at + codes_bytes_ + starts_bytes_);
        group.x = reinterpret_cast<float *>(at);
        group.sums = reinterpret_cast<float *>(at + codes_bytes_ + 2 * starts_bytes_ + x_bytes_);
        return group;
    }

    template <class Task> void each(bool parallel_pays, std::size_t count, const Task &task) const {
        if (parallel_pays)
            parallel(pool_, count, task);
        else
            for (std::size_t i = 0; i < count; ++i)
                task(i);
    }

    void prepare() const {
        each(rows_ * call_.w.k >= parallel_numbers, groups_, [this](std::size_t g) { prepare_group(g); });
    }

    void prepare_group(std::size_t index) const {
        const Group rows = group(index);
        auto *normed = reinterpret_cast<float *>(memory_ + (index + 1) * group_bytes_ - normed_bytes_);
        for (std::size_t r = 0; r < rows.rows; ++r) {
            const float *x = call_.x + (row_of(index) + r) * call_.w.k;
            if (call_.norm) {
                kernels_.normalise(x, call_.norm, call_.epsilon, call_.w.k, normed);
                x = normed;
            }
            (exact_ ? kernels_.spread : kernels_.quantise)(x, call_.w, r, rows);
        }
    }

    // In nanoseconds: products or reading the weights, whichever takes longer on a fast core.
    std::size_t work() const {
        const std::size_t products = rows_ * call_.w.padded_k() * call_.w.n,
                          bytes = call_.w.tiles() * call_.w.tile_bytes();
        return std::max(products / (exact_ ? 50 : 200), bytes / 30);
    }

    void multiply() const {
        const std::size_t units = gated_ && !whole_ ? half_ / tile_columns : call_.w.tiles();
        const std::size_t chunks = std::min(units, chunks_in_call);
        each(work() >= parallel_work, chunks,
             [=](std::size_t c) { multiply_chunk(units * c / chunks, units * (c + 1) / chunks); });
    }

    // Columns of y in tiles `from` .. `to` - 1. One group reads several tiles at a time; several groups share
    // a tile while it is in the cache.
    void multiply_chunk(std::size_t from, std::size_t to) const {
        const std::size_t step = groups_ == 1 ? most_tiles : 1;
        for (std::size_t tile = from; tile < to; tile += step)
            for (std::size_t g = 0; g < groups_; ++g)
                multiply_tiles(tile, std::min(step, to - tile), g);
    }

    void multiply_tiles(std::size_t tile, std::size_t count, std::size_t index) const {
        alignas(64) float acc[most_tiles * most_rows * tile_columns],
            up[most_tiles * most_rows * tile_columns];
        const Group rows = group(index);
        run_kernel(tile, count, index, rows, acc);
        if (gated_ && !whole_)
            run_kernel(half_ / tile_columns + tile, count, index, rows, up);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t skip = i * rows.rows * tile_columns;
            finish_tile(tile + i, row_of(index), rows.rows, acc + skip, up + skip);
        }
    }

    void run_kernel(std::size_t tile, std::size_t count, std::size_t index, const Group &rows,
                    float *out) const {
        const std::size_t bytes = call_.w.tile_bytes();
        const char *weights = static_cast<const char *>(call_.w.weights) + tile * bytes;
        TileRun run{&call_.w, tile, count, &rows, out, weights + prefetch_distance, 64};
        if (groups_ > 1) { // the next tile, each group a part of it
            run.ahead = weights + bytes + index * bytes / groups_;
            run.ahead_step = 64 / groups_;
        }
        (exact_ ? kernels_.multiply_exact : kernels_.multiply)(run);
    }

    void finish_tile(std::size_t tile, std::size_t row, std::size_t rows, const float *acc,
                     const float *up) const {
        const std::size_t column = tile * tile_columns;
        Finish end{};
        end.acc = acc;
        end.stride = tile_columns;
        end.rows = rows;
        end.bias = call_.bias ? call_.bias + column : nullptr;
        if (whole_) {
            end.y_stride = call_.w.n;
            end.y = columns_ + (row - first_) * end.y_stride + column;
        } else {
            end.y_stride = gated_ ? half_ : call_.w.n;
            end.y = call_.y + row * end.y_stride + column;
            end.residual = call_.residual ? call_.residual + row * end.y_stride + column : nullptr;
        }
        if (gated_ && !whole_) {
            end.up = up;
            end.up_bias = call_.bias ? call_.bias + half_ + column : nullptr;
            end.activation = call_.activation;
        }
        end.columns = std::min(tile_columns, end.y_stride - column);
        kernels_.finish(end);
    }

    // From all columns of the product, with bias, in the scratch.
    void gate_rows() const {
        Finish end{};
        end.acc = columns_;
        end.up = columns_ + half_;
        end.stride = call_.w.n;
        end.rows = rows_;
        end.columns = end.y_stride = half_;
        end.activation = call_.activation;
        end.residual = call_.residual ? call_.residual + first_ * half_ : nullptr;
        end.y = call_.y + first_ * half_;
        kernels_.finish(end);
    }
};

} // namespace

const TileKernels *tile_kernels(Level level) {
    switch (level) {
#if defined(__x86_64__) || defined(_M_X64)
    case Level::avx2:
        return &avx2_tiles;
#if !defined(PACELINE_NO_AVXVNNI)
    case Level::avxvnni:
        return &avxvnni_tiles;
#endif
    case Level::avx512vnni:
        return &avx512vnni_tiles;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Level::neon:
        return &neon_tiles;
    case Level::i8mm:
        return &i8mm_tiles;
#endif
    case Level::portable:
        return &portable_tiles;
    default:
        return nullptr;
    }
}

void matmul(const MatMul &call, const Pool &pool) {
    if (call.rows > 0 && call.w.n > 0)
        Product(call, pool).run();
}

} // namespace paceline
