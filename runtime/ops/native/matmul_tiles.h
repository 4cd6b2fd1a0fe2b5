// What an instruction set contributes to matmul(): a table of functions on tiles and on rows. matmul.cpp is
// the driver.
#pragma once
#include "isa.h"
#include "matmul.h"
#include <cstddef>
#include <cstdint>

namespace paceline {

constexpr std::size_t tile_columns = 16;
constexpr std::size_t most_rows = 16; // in a group, at any level
constexpr std::size_t most_tiles = 4; // in one call of `multiply` or `multiply_exact`

// Up to `most_rows` rows of x that are multiplied together with each tile. Padded numbers (from k to
// padded_k) are 0.
struct Group {
    std::size_t rows;
    // int8 activations. A quad is 4 consecutive numbers of one row; quad q of row r stands at
    // codes + 4 * TileKernels::place(q, r, rows). [padded_k / 4, rows, 4] at most levels.
    std::int8_t *codes;
    std::int32_t *starts; // [blocks, rows]: - zero point of w * sum of the row's codes in the block
    float *scales;        // [blocks, rows]: NaN where the block of the row has a NaN or an infinity
    // float activations
    float *x; // [padded_k, rows]
    // [blocks, rows], only where w has minima: what the block of the row sums up to. int8 activations: scale
    // * float(sum of the codes); float ones: added one by one, k ascending.
    float *sums;
};

// Tiles first .. first + count - 1 of w for one group; count is 1 to most_tiles.
struct TileRun {
    const PackedMatrix *w;
    std::size_t first, count;
    const Group *group;
    float *out; // [count, rows, 16], 64-byte aligned, every number is written (padded columns with anything)
    // What to prefetch, a hint: `ahead_step` bytes further for each 64 bytes of weights read.
    const char *ahead;
    std::size_t ahead_step;
};

// The end of a product, column by column: y = (acc + bias), or act(acc + bias) * (up + up_bias); then +
// residual. Pointers to bias, up, residual may be null. Any number of rows and columns.
struct Finish {
    const float *acc, *up; // [rows, stride]
    std::size_t stride;
    std::size_t rows, columns;
    const float *bias, *up_bias; // [columns]
    Activation activation;       // none exactly if up is null
    const float *residual;       // [rows, y_stride]
    float *y;                    // [rows, y_stride]
    std::size_t y_stride;
};

// All levels give the same bits, whatever the number of rows in the group and the number of tiles in the run.
struct TileKernels {
    std::size_t rows;       // most rows of a group for `multiply`
    std::size_t exact_rows; // most rows of a group for `multiply_exact`
    // Where quad q of row r stands in Group::codes, counted in quads; less than padded_k / 4 * (rows rounded
    // up to 4).
    std::size_t (*place)(std::size_t quad, std::size_t row, std::size_t rows);

    // y[i] = x[i] * (1 / sqrt(mean of squares + epsilon)) * norm[i], i < k. May be called with y == x.
    void (*normalise)(const float *x, const float *norm, float epsilon, std::size_t k, float *y);
    // One row into the group: codes, starts and scales of each block (matmul.h tells the rounding). Only x[0
    // .. k) is read.
    void (*quantise)(const float *x, const PackedMatrix &w, std::size_t row, const Group &group);
    // One row into Group::x.
    void (*spread)(const float *x, const PackedMatrix &w, std::size_t row, const Group &group);

    // codes. For each row and column, from acc = 0, blocks in order:
    //   s = sum over the block of (code - zero) * activation, an exact int32;  acc = fma(float(s), w scale *
    //   row scale, acc);  with minima then acc = fma(minimum, sum of the row, acc).
    void (*multiply)(const TileRun &run);
    // Float activations. codes, from acc = 0, blocks in order: from t = 0, k ascending:
    //   t = fma(x[k], float(code - zero), t);  then acc = fma(t, w scale, acc), and the minimum as above.
    // half, bfloat, single, from acc = 0, k ascending: acc = fma(x[k], w[k], acc).
    void (*multiply_exact)(const TileRun &run);
    void (*finish)(const Finish &finish);
};

// Null where the level is not compiled into this library. matmul_<level>.cpp defines its table; normalise,
// quantise, spread and finish come from matmul_rows.inc.h, written with the lanes of the level.
const TileKernels *tile_kernels(Level level);
extern const TileKernels portable_tiles, avx2_tiles, avxvnni_tiles, avx512vnni_tiles, neon_tiles, i8mm_tiles;

} // namespace paceline
