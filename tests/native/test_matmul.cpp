// Products with packed matrices: every instruction set of this machine gives the same bits, for any number of
// rows and of threads, near a reference in double precision. Shapes are random; the number of rounds is the
// first argument, the seed the second. Exits with 1 at the first failure.
//
//   python tests/native/build.py plain test_matmul --run
//
// or without that script, on x86-64:
//
//   cd runtime/ops/native && F="-std=c++17 -O2 -ffp-contract=off -fno-math-errno -I."
//   g++ $F -c isa.cpp matmul.cpp matmul_embed.cpp matmul_portable.cpp
//   g++ $F -mavx2 -mfma -mf16c -c matmul_avx2.cpp
//   g++ $F -mavx2 -mfma -mf16c -mavxvnni -c matmul_avxvnni.cpp
//   g++ $F -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -c matmul_avx512.cpp
//   g++ $F -pthread ../../../tests/native/test_matmul.cpp isa.o matmul*.o -o test_matmul && ./test_matmul
#include "isa.h"
#include "packed.h"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

namespace {

using namespace paceline;
using paceline::testing::block_unit;
using paceline::testing::code_at;
using paceline::testing::minimum_at;
using paceline::testing::RandomMatrix;
using paceline::testing::scale_at;
using paceline::testing::ThreadPool;
using Floats = std::vector<float>;

std::string doing;

[[noreturn]] void fail(const std::string &what) {
    std::printf("FAILED: %s\n  in %s\n", what.c_str(), doing.c_str());
    std::exit(1);
}

std::vector<Level> levels() {
    std::vector<Level> all;
    for (const Level level :
         {Level::portable, Level::avx2, Level::avxvnni, Level::avx512vnni, Level::neon, Level::i8mm})
        if (supported(level))
            all.push_back(level);
    return all;
}

bool same(float a, float b) { // NaN is NaN, whatever its bits
    return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b));
}

void expect_same(const Floats &got, const Floats &wanted, const std::string &what) {
    for (std::size_t i = 0; i < wanted.size(); ++i)
        if (!same(got[i], wanted[i]))
            fail(what + ": number " + std::to_string(i) + " is " + std::to_string(got[i]) + ", not " +
                 std::to_string(wanted[i]));
}

// A product with everything it points to.
struct Case {
    RandomMatrix matrix;
    std::size_t rows;
    bool exact;
    Activation activation;
    Floats x, norm, bias, residual;
    float epsilon = 1e-5f;

    std::size_t y_columns() const {
        return activation == Activation::none ? matrix.packed.n : matrix.packed.n / 2;
    }

    Floats run(std::size_t from, std::size_t count, const Pool &pool) const {
        const float canary = 12345.5f;
        const std::size_t columns = y_columns();
        Floats y(count * columns + 16, canary);
        const auto given = [](const Floats &v) { return v.empty() ? nullptr : v.data(); };
        MatMul call{};
        call.x = x.data() + from * matrix.packed.k;
        call.rows = count;
        call.w = matrix.packed;
        call.norm = given(norm);
        call.epsilon = epsilon;
        call.bias = given(bias);
        call.residual = residual.empty() ? nullptr : residual.data() + from * columns;
        call.activation = activation;
        call.exact = exact;
        call.y = y.data();
        matmul(call, pool);
        for (std::size_t i = count * columns; i < y.size(); ++i)
            if (y[i] != canary)
                fail("wrote beyond the end of y");
        y.resize(count * columns);
        return y;
    }
};

// Row of x after the norm, in double.
std::vector<double> normed_row(const Case &c, std::size_t row) {
    const std::size_t k = c.matrix.packed.k;
    std::vector<double> x(c.x.begin() + static_cast<std::ptrdiff_t>(row * k),
                          c.x.begin() + static_cast<std::ptrdiff_t>((row + 1) * k));
    if (c.norm.empty())
        return x;
    double squares = 0;
    for (const double v : x)
        squares += v * v;
    const double factor = 1 / std::sqrt(squares / static_cast<double>(k) + static_cast<double>(c.epsilon));
    for (std::size_t i = 0; i < k; ++i)
        x[i] *= factor * static_cast<double>(c.norm[i]);
    return x;
}

double activated(Activation activation, double x) {
    if (activation == Activation::silu)
        return x / (1 + std::exp(-x));
    if (activation == Activation::gelu)
        return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

struct Wanted {
    double value, tolerance;
};

// One column of the product with bias. A code of an activation may be off by one where the norm's rounding
// moved it.
Wanted column(const Case &c, const std::vector<double> &x, std::size_t n) {
    const PackedMatrix &w = c.matrix.packed;
    const std::size_t block = w.block == 0 ? w.k : w.block;
    double value = 0, size = 0, steps = 0;
    for (std::size_t from = 0; from < w.k; from += block) {
        const std::size_t to = std::min(w.k, from + block);
        const double scale = scale_at(w, from / block, n), minimum = minimum_at(w, from / block, n);
        double most = 0;
        for (std::size_t k = from; k < to; ++k)
            most = std::max(most, std::abs(x[k]));
        const bool rounded = !c.exact && w.block != 0 && most > 0;
        for (std::size_t k = from; k < to; ++k) {
            const double scaled = x[k] * 127 / most, near = std::nearbyint(scaled);
            const double taken = rounded ? near * most / 127 : x[k], code = code_at(w, k, n) * scale;
            if (rounded && std::abs(std::abs(scaled - near) - 0.5) < 1e-4) // could go either way in float
                steps += std::abs(code + minimum) * most / 127;
            value += taken * (code + minimum);
            size += std::abs(taken) * (std::abs(code) + std::abs(minimum));
        }
    }
    const double bias = c.bias.empty() ? 0.0 : static_cast<double>(c.bias[n]);
    return {value + bias, steps + 1e-5 * (size + std::abs(bias)) + 1e-30};
}

void compare_with_reference(const Case &c, const Floats &y) {
    const std::size_t columns = c.y_columns();
    for (std::size_t r = 0; r < c.rows; ++r) {
        const std::vector<double> x = normed_row(c, r);
        for (std::size_t n = 0; n < columns; ++n) {
            Wanted wanted = column(c, x, n);
            if (c.activation != Activation::none) {
                const Wanted up = column(c, x, columns + n);
                const double gate = activated(c.activation, wanted.value);
                // the slope of these activations is at most 1.2
                wanted = {gate * up.value, 1.2 * wanted.tolerance * (std::abs(up.value) + up.tolerance) +
                                               std::abs(gate) * up.tolerance +
                                               1e-5 * std::abs(gate * up.value)};
            }
            if (!c.residual.empty())
                wanted.value += static_cast<double>(c.residual[r * columns + n]);
            wanted.tolerance += 1e-6 * std::abs(wanted.value);
            const auto got = static_cast<double>(y[r * columns + n]);
            if (!(std::abs(got - wanted.value) <= wanted.tolerance))
                fail("row " + std::to_string(r) + " column " + std::to_string(n) + " is " +
                     std::to_string(got) + ", the reference " + std::to_string(wanted.value));
        }
    }
}

// The bits of the portable level on one thread are what all others must give.
void compare_all_ways(const Case &c, ThreadPool &threads, bool reference) {
    use(Level::portable);
    const Floats wanted = c.run(0, c.rows, serial_pool());
    if (reference)
        compare_with_reference(c, wanted);
    const std::size_t columns = c.y_columns();
    for (const Level level : levels()) {
        use(level);
        const std::string name = name_of(level);
        expect_same(c.run(0, c.rows, serial_pool()), wanted, name);
        expect_same(c.run(0, c.rows, threads.pool()), wanted, name + " with threads");
        for (std::size_t r = 0; r < c.rows; r += c.rows > 40 ? 13 : 1) {
            const Floats row(wanted.begin() + static_cast<std::ptrdiff_t>(r * columns),
                             wanted.begin() + static_cast<std::ptrdiff_t>((r + 1) * columns));
            expect_same(c.run(r, 1, serial_pool()), row, name + ", row " + std::to_string(r) + " alone");
        }
    }
}

Floats normal_numbers(std::size_t count, float size, std::mt19937 &random) {
    std::normal_distribution<float> normal(0.0f, size);
    Floats out(count);
    for (float &v : out)
        v = normal(random);
    return out;
}

const char *name_of_kind(Kind kind) {
    constexpr const char *names[] = {"codes4", "codes5", "codes6", "codes8", "half", "bfloat", "single"};
    return names[static_cast<int>(kind)];
}

struct Shape {
    std::size_t k, n, rows;
    Kind kind;
    std::size_t block;
    bool minima = false;
};

Case make_case(const Shape &s, bool exact, Activation activation, bool fused, std::mt19937 &random) {
    Case c{RandomMatrix(s.k, s.n, s.kind, s.block, random() % 2 == 0, random, s.minima),
           s.rows,
           exact,
           activation,
           {},
           {},
           {},
           {}};
    c.x = normal_numbers(s.rows * s.k, 1.0f, random);
    if (fused && random() % 2 == 0)
        c.norm = normal_numbers(s.k, 1.0f, random);
    if (fused && random() % 2 == 0)
        c.bias = normal_numbers(s.n, 1.0f, random);
    if (fused && random() % 2 == 0)
        c.residual = normal_numbers(s.rows * c.y_columns(), 1.0f, random);
    doing = std::string(name_of_kind(s.kind)) + (s.minima ? " with minima" : "") + " block " +
            std::to_string(s.block) + " K " + std::to_string(s.k) + " N " + std::to_string(s.n) + " rows " +
            std::to_string(s.rows) + (exact ? " exact" : "") + " activation " +
            std::to_string(static_cast<int>(activation)) + (c.norm.empty() ? "" : " norm") +
            (c.bias.empty() ? "" : " bias") + (c.residual.empty() ? "" : " residual");
    return c;
}

Shape random_shape(std::mt19937 &random) {
    constexpr std::size_t blocks[] = {8, 16, 24, 32, 40, 64, 128, 128, 256};
    Shape s{1 + random() % 300, 1 + random() % 70, 1 + random() % 20, static_cast<Kind>(random() % 7), 0};
    if (random() % 8 == 0)
        s.rows = 1 + random() % 80;
    if (const std::size_t unit = block_unit(s.kind)) {
        const std::size_t wanted = random() % 5 == 0 ? s.k : blocks[random() % 9];
        s.block = (wanted + unit - 1) / unit * unit;
    }
    s.minima = coded(s.kind) && s.kind != Kind::codes8 && random() % 2 == 0;
    return s;
}

void test_random_shapes(ThreadPool &threads, std::mt19937 &random, int rounds) {
    for (int i = 0; i < rounds; ++i) {
        Shape s = random_shape(random);
        const auto activation = static_cast<Activation>(random() % 4);
        if (activation != Activation::none)
            s.n = (s.n + 1) / 2 * (random() % 3 == 0 ? 32 : 2);
        compare_all_ways(make_case(s, random() % 3 == 0, activation, true, random), threads, true);
    }
}

// Large enough for the thread pool, for several passes over rows, for every number of rows in a group.
void test_large_shapes(ThreadPool &threads, std::mt19937 &random) {
    for (std::size_t rows = 1; rows <= 33; ++rows)
        compare_all_ways(
            make_case({512, 160, rows, Kind::codes4, 128}, false, Activation::none, false, random), threads,
            rows == 33);
    for (const Kind kind : {Kind::codes4, Kind::codes5, Kind::codes6, Kind::codes8})
        for (const std::size_t block : {std::size_t{32}, std::size_t{128}, std::size_t{2048}})
            compare_all_ways(make_case({2048, 400, 13, kind, block, block == 32 && kind != Kind::codes8},
                                       false, Activation::none, false, random),
                             threads, false);
    for (std::size_t rows = 1; rows <= 17; ++rows) // what GGUF files hold
        for (const Shape &s :
             {Shape{512, 160, rows, Kind::codes4, 32, true}, Shape{512, 160, rows, Kind::codes5, 32, true},
              Shape{512, 160, rows, Kind::codes5, 32}, Shape{512, 160, rows, Kind::codes6, 16}})
            compare_all_ways(make_case(s, false, Activation::none, false, random), threads, rows == 17);
    compare_all_ways(make_case({4096, 64, 300, Kind::codes8, 128}, false, Activation::silu, true, random),
                     threads, false);
    compare_all_ways(make_case({2048, 96, 100, Kind::codes4, 32}, true, Activation::gelu, true, random),
                     threads, false);
}

// The largest sums there can be: nothing may saturate or wrap.
void test_extreme_codes(ThreadPool &threads, std::mt19937 &random) {
    for (const Kind kind : {Kind::codes4, Kind::codes5, Kind::codes6, Kind::codes8})
        for (const int byte : {0x00, 0xff, 0x0f, 0x80})
            for (const float x : {1.0f, -1.0f}) {
                const bool minima = kind != Kind::codes8 && x > 0;
                Case c = make_case({4096, 16, 2, kind, 4096, minima}, false, Activation::none, false, random);
                std::fill(c.matrix.weights.begin(), c.matrix.weights.end(), static_cast<std::uint8_t>(byte));
                std::fill(c.x.begin(), c.x.end(), x);
                compare_all_ways(c, threads, true);
            }
}

// A number that is not finite ruins its own row only; rows of zeros and of denormal numbers give bias and
// residual.
void test_strange_numbers(ThreadPool &threads, std::mt19937 &random) {
    for (const float strange :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
        Case c = make_case({96, 40, 5, Kind::codes4, 32, random() % 2 == 0}, false, Activation::none, false,
                           random);
        const Floats before = c.run(0, c.rows, serial_pool());
        c.x[2 * 96 + 70] = strange;
        compare_all_ways(c, threads, false);
        const Floats after = c.run(0, c.rows, serial_pool());
        for (std::size_t i = 0; i < after.size(); ++i)
            if (i / 40 == 2 ? !std::isnan(after[i]) : !same(after[i], before[i]))
                fail("a row with a strange number: number " + std::to_string(i) + " is " +
                     std::to_string(after[i]));
    }
    for (const float small : {0.0f, 1e-42f, 9e-31f, 1.1e-30f}) {
        Case c = make_case({64, 32, 3, Kind::codes8, 64}, false, Activation::none, false, random);
        std::fill(c.x.begin(), c.x.end(), small);
        compare_all_ways(c, threads, false);
        const Floats y = c.run(0, c.rows, serial_pool());
        if (small < 1e-30f && std::any_of(y.begin(), y.end(), [](float v) { return v != 0.0f; }))
            fail("rows of tiny numbers do not give 0");
    }
}

void test_embedding(std::mt19937 &random) {
    for (int i = 0; i < 50; ++i) {
        const Shape s = random_shape(random);
        const RandomMatrix matrix(s.k, s.n, s.kind, s.block, i % 2 == 0, random, s.minima);
        doing = std::string("embed ") + name_of_kind(s.kind) + " K " + std::to_string(s.k) + " N " +
                std::to_string(s.n);
        std::vector<std::int64_t> ids = {0, static_cast<std::int64_t>(s.n) - 1,
                                         static_cast<std::int64_t>(random() % s.n)};
        Floats out(ids.size() * s.k);
        embed(ids.data(), ids.size(), matrix.packed, out.data());
        for (std::size_t j = 0; j < out.size(); ++j) {
            const std::size_t k = j % s.k, n = static_cast<std::size_t>(ids[j / s.k]);
            const std::size_t block = s.block ? k / s.block : 0;
            const double wanted = code_at(matrix.packed, k, n) * scale_at(matrix.packed, block, n) +
                                  minimum_at(matrix.packed, block, n);
            if (out[j] != static_cast<float>(wanted))
                fail("number " + std::to_string(j) + " is " + std::to_string(out[j]));
        }
    }
}

} // namespace

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
    const unsigned seed = argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1;
    std::mt19937 random(seed);
    ThreadPool threads(3);
    test_random_shapes(threads, random, rounds);
    test_large_shapes(threads, random);
    test_extreme_codes(threads, random);
    test_strange_numbers(threads, random);
    test_embedding(random);
    std::printf("ok: seed %u, %d random shapes, levels", seed, rounds);
    for (const Level level : levels())
        std::printf(" %s", name_of(level));
    std::printf("\n");
}
