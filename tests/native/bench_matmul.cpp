// Speed of products with packed matrices against the limits of the machine, measured in the same run.
//
//   python tests/native/build.py plain bench_matmul && build/native/plain/bench_matmul [K N THREADS [LEVEL
//   [ROWS ...]]]
//
// The weights are cold: copies of the matrix, more than fit into any cache, are used in turn, in huge pages
// where the system has them. Every number is a median; all numbers of rows are measured in turns. "read" is
// the share of the bandwidth that a loop which only reads memory gets on the same threads, "peak" the share
// of the dot products (float products for exact and float formats) that a loop on registers does on the same
// number of cores.
#include "isa.h"
#include "packed.h"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

using namespace paceline;
using paceline::testing::RandomMatrix;
using paceline::testing::ThreadPool;

constexpr std::size_t cold_bytes = std::size_t{100} << 20;

double now_us() {
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::micro>(time).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

std::uint8_t *huge_pages(std::size_t bytes) {
#if defined(__linux__)
    constexpr std::size_t page = std::size_t{2} << 20;
    void *memory = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) {
        const auto start = (reinterpret_cast<std::uintptr_t>(memory) + page - 1) / page * page;
        auto *aligned = reinterpret_cast<std::uint8_t *>(start);
        madvise(aligned, bytes, MADV_HUGEPAGE);
        return aligned;
    }
#endif
    return static_cast<std::uint8_t *>(std::malloc(bytes));
}

template <bool prefetch> std::uint64_t read_all(const std::uint8_t *memory, std::size_t bytes) {
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i + 64 <= bytes; i += 64) {
#if defined(__GNUC__)
        if (prefetch)
            __builtin_prefetch(memory + i + 8192);
#endif
        for (std::size_t j = 0; j < 8; ++j) {
            std::uint64_t word;
            std::memcpy(&word, memory + i + 8 * j, 8);
            sums[j] += word;
        }
    }
    return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

template <bool prefetch> double read_speed_of_loop(const std::uint8_t *memory, const Pool &pool) {
    std::atomic<std::uint64_t> sink{0};
    constexpr std::size_t parts = 16, bytes = cold_bytes / parts;
    const double start = now_us();
    parallel(pool, parts, [&](std::size_t i) { sink += read_all<prefetch>(memory + i * bytes, bytes); });
    return static_cast<double>(cold_bytes) / 1e3 / (now_us() - start);
}

// Gigabytes per second of a loop that only reads, with the hardware's prefetcher alone or helped: the faster
// one.
double read_speed(const std::uint8_t *memory, const Pool &pool) {
    return std::max(read_speed_of_loop<false>(memory, pool), read_speed_of_loop<true>(memory, pool));
}

#if defined(__x86_64__) && defined(__GNUC__)

constexpr int peak_steps = 1 << 18;

#define PACELINE_TEN(I, R)                                                                                   \
    I " %%" R "mm10,%%" R "mm11,%%" R "mm0\n\t" I " %%" R "mm10,%%" R "mm11,%%" R "mm1\n\t" I " %%" R        \
      "mm10,%%" R "mm11,%%" R "mm2\n\t" I " %%" R "mm10,%%" R "mm11,%%" R "mm3\n\t" I " %%" R "mm10,%%" R    \
      "mm11,%%" R "mm4\n\t" I " %%" R "mm10,%%" R "mm11,%%" R "mm5\n\t" I " %%" R "mm10,%%" R "mm11,%%" R    \
      "mm6\n\t" I " %%" R "mm10,%%" R "mm11,%%" R "mm7\n\t" I " %%" R "mm10,%%" R "mm11,%%" R "mm8\n\t" I    \
      " %%" R "mm10,%%" R "mm11,%%" R "mm9\n\t"

#define PACELINE_LOOP(name, instruction, letter)                                                             \
    void name() {                                                                                            \
        for (int i = 0; i < peak_steps / 10; ++i)                                                            \
            asm volatile(PACELINE_TEN(instruction, letter)::                                                 \
                             : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",       \
                               "xmm9");                                                                      \
    }

PACELINE_LOOP(dots_512, "vpdpbusd", "z")
PACELINE_LOOP(dots_256, "%{vex%} vpdpbusd", "y")
PACELINE_LOOP(dots_avx2, "vpmaddubsw", "y")
PACELINE_LOOP(fmas_512, "vfmadd231ps", "z")
PACELINE_LOOP(fmas_256, "vfmadd231ps", "y")

// Products of two numbers per nanosecond that one core can do at a level; 0 where no loop is written for it.
double peak_products(Level level, bool exact) {
    void (*loop)() = nullptr;
    double products = 0;
    if (level == Level::avx512vnni)
        loop = exact ? fmas_512 : dots_512, products = exact ? 16 : 64;
    else if (level == Level::avxvnni || level == Level::avx2)
        loop = exact ? fmas_256 : level == Level::avxvnni ? dots_256 : dots_avx2, products = exact ? 8 : 32;
    if (loop == nullptr)
        return 0;
    const double start = now_us();
    loop();
    return products * peak_steps / 1e3 / (now_us() - start);
}

#else

double peak_products(Level, bool) { return 0; }

#endif

struct Format {
    const char *name;
    Kind kind;
    std::size_t block; // 0 with codes: per channel
    bool exact;
    bool minima = false;
};

constexpr Format formats[] = {
    {"4 bit, block 32", Kind::codes4, 32, false},
    {"4 bit, block 128", Kind::codes4, 128, false},
    {"4 bit, 32, minimum", Kind::codes4, 32, false, true},
    {"5 bit, block 32", Kind::codes5, 32, false},
    {"5 bit, 32, minimum", Kind::codes5, 32, false, true},
    {"6 bit, block 16", Kind::codes6, 16, false},
    {"6 bit, block 32", Kind::codes6, 32, false},
    {"8 bit, block 32", Kind::codes8, 32, false},
    {"8 bit, block 128", Kind::codes8, 128, false},
    {"8 bit, channel", Kind::codes8, 0, false},
    {"4 bit, 128, exact", Kind::codes4, 128, true},
    {"8 bit, 128, exact", Kind::codes8, 128, true},
    {"float16", Kind::half, 0, true},
    {"float32", Kind::single, 0, true},
};

struct Options {
    std::size_t k = 2048, n = 5632, threads = 1;
    std::vector<std::size_t> rows = {1, 2, 4, 8, 16, 64};
};

class Bench {
  public:
    explicit Bench(const Options &options)
        : options_(options), threads_(options.threads), memory_(huge_pages(2 * cold_bytes)),
          x_(largest() * options.k, 0.0f), y_(largest() * options.n) {
        std::normal_distribution<float> normal;
        for (float &v : x_)
            v = normal(random_);
    }

    void run(const Format &format) {
        const std::size_t block = coded(format.kind) && format.block == 0 ? options_.k : format.block;
        RandomMatrix matrix(options_.k, options_.n, format.kind, block, false, random_, format.minima);
        const std::size_t bytes = matrix.weights.size() + matrix.scales.size();
        place_copies(matrix);
        std::vector<std::vector<double>> times(options_.rows.size());
        std::vector<double> reads, peaks;
        for (int round = 0; round < 5; ++round) {
            reads.push_back(read_speed(memory_, pool()));
            peaks.push_back(peak_products(active(), format.exact));
            for (std::size_t i = 0; i < options_.rows.size(); ++i)
                measure(matrix.packed, format.exact, options_.rows[i], times[i]);
        }
        print(format, bytes, times, median(reads), median(peaks));
    }

  private:
    Options options_;
    ThreadPool threads_;
    std::uint8_t *memory_;
    std::vector<float> x_, y_;
    std::mt19937 random_{1};
    std::vector<std::size_t> copies_; // offsets of weights; the scales follow them
    std::size_t scales_at_ = 0, next_ = 0;

    std::size_t largest() const { return *std::max_element(options_.rows.begin(), options_.rows.end()); }
    Pool pool() { return options_.threads > 1 ? threads_.pool() : serial_pool(); }

    void place_copies(const RandomMatrix &matrix) {
        constexpr std::size_t page = 4096;
        scales_at_ = (matrix.weights.size() + page - 1) / page * page;
        const std::size_t step = scales_at_ + (matrix.scales.size() + page - 1) / page * page;
        copies_.clear();
        for (std::size_t at = 0; at + step <= 2 * cold_bytes && at <= cold_bytes; at += step) {
            copies_.push_back(at);
            std::memcpy(memory_ + at, matrix.weights.data(), matrix.weights.size());
            std::memcpy(memory_ + at + scales_at_, matrix.scales.data(), matrix.scales.size());
        }
    }

    // At least 3 calls and 40 milliseconds.
    void measure(const PackedMatrix &matrix, bool exact, std::size_t rows, std::vector<double> &times) {
        const double begin = now_us();
        for (int calls = 0; calls < 3 || now_us() < begin + 40e3; ++calls) {
            MatMul call{};
            call.x = x_.data();
            call.rows = rows;
            call.w = matrix;
            const std::uint8_t *copy = memory_ + copies_[next_++ % copies_.size()];
            call.w.weights = copy;
            call.w.scales = reinterpret_cast<const std::uint16_t *>(copy + scales_at_);
            call.exact = exact;
            call.y = y_.data();
            const double start = now_us();
            matmul(call, pool());
            times.push_back(now_us() - start);
        }
    }

    void print(const Format &format, std::size_t bytes, const std::vector<std::vector<double>> &times,
               double read, double peak) {
        const auto cores = static_cast<double>(options_.threads);
        std::printf("%s: %.2f MB, %s, %zu thread%s, read %.1f GB/s, peak %.0f products/ns\n", format.name,
                    static_cast<double>(bytes) / 1e6, name_of(active()), options_.threads,
                    options_.threads == 1 ? "" : "s", read, peak * cores);
        const double first = median(times[0]);
        for (std::size_t i = 0; i < times.size(); ++i) {
            const double us = median(times[i]), speed = static_cast<double>(bytes) / 1e3 / us;
            const double products =
                static_cast<double>(options_.rows[i] * options_.k * options_.n) / 1e3 / us;
            std::printf("  M %3zu  %9.1f us  x %5.2f  %5.1f GB/s = %3.0f%% of read", options_.rows[i], us,
                        us / first, speed, 100 * speed / read);
            if (peak > 0)
                std::printf("  %3.0f%% of peak", 100 * products / (peak * cores));
            std::printf("\n");
        }
    }
};

std::size_t number(const char *text) { return static_cast<std::size_t>(std::strtoull(text, nullptr, 10)); }

} // namespace

int main(int argc, char **argv) {
    Options options;
    if (argc > 3) {
        options.k = number(argv[1]);
        options.n = number(argv[2]);
        options.threads = number(argv[3]);
    }
    if (argc > 4)
        for (const Level level :
             {Level::portable, Level::avx2, Level::avxvnni, Level::avx512vnni, Level::neon, Level::i8mm})
            if (std::string(argv[4]) == name_of(level) && !use(level)) {
                std::printf("this machine does not support %s\n", argv[4]);
                return 1;
            }
    if (argc > 5)
        options.rows.clear();
    for (int i = 5; i < argc; ++i)
        options.rows.push_back(number(argv[i]));
    Bench bench(options);
    const char *only = std::getenv("BENCH_FORMAT");
    for (const Format &format : formats)
        if (only == nullptr || std::strstr(format.name, only) != nullptr)
            bench.run(format);
}
