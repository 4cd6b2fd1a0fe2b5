// Products of fuzzed shapes, and rows of the table that the matrix is.
#pragma once
#include "checksum.h"
#include "draws.h"
#include "matmul.h"
#include <cstring>
#include <vector>

namespace paceline {

struct Weights {
    std::vector<std::uint8_t> packed;
    std::vector<std::uint16_t> scales;
    PackedMatrix matrix;
};

inline PackedMatrix shape(Random &random) {
    const Kind kinds[] = {Kind::codes4, Kind::codes4, Kind::codes5, Kind::codes5, Kind::codes6,
                          Kind::codes6, Kind::codes8, Kind::half,   Kind::bfloat, Kind::single};
    PackedMatrix matrix{};
    matrix.k = 1 + random.below(random.chance(4) ? 700 : 150);
    matrix.n = 1 + random.below(random.chance(4) ? 200 : 50);
    matrix.kind = kinds[random.below(10)];
    if (coded(matrix.kind)) {
        const std::size_t unit = matrix.kind == Kind::codes5 ? 32 : matrix.kind == Kind::codes6 ? 16 : 8;
        const std::size_t blocks[] = {32, 128, 16, 64, 8, 24, matrix.k};
        matrix.block = (blocks[random.below(7)] + unit - 1) / unit * unit;
        matrix.minima = matrix.kind != Kind::codes8 && random.chance(2);
    }
    return matrix;
}

inline Weights weights(Random &random, const PackedMatrix &of) {
    Weights made{{}, {}, of};
    made.packed = bytes(random, of.tiles() * of.tile_bytes());
    if (of.kind == Kind::half || of.kind == Kind::bfloat) {
        for (std::size_t i = 0; i + 1 < made.packed.size(); i += 2) {
            const std::uint16_t bits = of.kind == Kind::half ? half_bits(random) : bfloat_bits(random);
            std::memcpy(&made.packed[i], &bits, 2);
        }
    } else if (of.kind == Kind::single) {
        const std::vector<float> values = numbers(random, made.packed.size() / 4);
        std::memcpy(made.packed.data(), values.data(), made.packed.size());
    } else {
        made.scales.resize(of.tiles() * of.blocks() * of.scale_line());
        for (std::uint16_t &scale : made.scales)
            scale = half_bits(random);
    }
    made.matrix.weights = made.packed.data();
    made.matrix.scales = made.scales.empty() ? nullptr : made.scales.data();
    return made;
}

// Rows that real models do not have, and that must not disturb their neighbours.
inline void spoil(Random &random, std::vector<float> &x, std::size_t k) {
    const std::size_t rows = x.size() / k, row = random.below(rows), at = row * k + random.below(k);
    const std::uint32_t odd[] = {0x7f800000u, 0xff800000u, 0x7fc00000u,
                                 0x7f7fffffu, 0x00000001u, 0x80000000u};
    if (random.chance(3)) {
        const float factor = random.chance(2) ? 0.0f : 1e-33f;
        for (std::size_t i = 0; i < k; ++i)
            x[row * k + i] *= factor;
    } else {
        std::memcpy(&x[at], &odd[random.below(6)], sizeof(float));
    }
}

inline void matmul_case(std::size_t number) {
    Random random{number * 7919 + 1};
    const Activation activations[] = {Activation::none, Activation::none, Activation::silu, Activation::gelu,
                                      Activation::gelu_tanh};
    PackedMatrix matrix = shape(random);
    const Activation activation = activations[random.below(5)];
    if (activation != Activation::none)
        matrix.n += matrix.n % 2;
    const Weights w = weights(random, matrix);
    const std::size_t rows = 1 + random.below(random.chance(8) ? 70 : 18);
    const std::size_t width = activation == Activation::none ? matrix.n : matrix.n / 2;
    std::vector<float> x = numbers(random, rows * matrix.k);
    if (random.chance(3))
        spoil(random, x, matrix.k);
    const std::vector<float> norm = numbers(random, matrix.k), bias = numbers(random, matrix.n);
    const std::vector<float> residual = numbers(random, rows * width);
    std::vector<float> y(rows * width);

    MatMul call{};
    call.x = x.data();
    call.rows = rows;
    call.w = w.matrix;
    call.norm = random.chance(2) ? norm.data() : nullptr;
    call.epsilon = 1e-5f;
    call.bias = random.chance(2) ? bias.data() : nullptr;
    call.residual = random.chance(2) ? residual.data() : nullptr;
    call.activation = activation;
    call.exact = random.chance(4);
    call.y = y.data();
    matmul(call, serial_pool());

    std::vector<std::int64_t> ids(1 + random.below(5));
    for (std::int64_t &id : ids)
        id = static_cast<std::int64_t>(random.below(matrix.n));
    std::vector<float> embedded(ids.size() * matrix.k);
    embed(ids.data(), ids.size(), w.matrix, embedded.data());

    Checksum sum;
    sum.add(y);
    sum.add(embedded);
    sum.print("matmul", number);
}

} // namespace paceline
