// Packed matrices for tests and benchmarks, and a small thread pool to run products on.
#pragma once
#include "matmul.h"
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace paceline::testing {

// A matrix with random contents. It owns its memory, which starts at an odd address if `odd`.
struct RandomMatrix {
    PackedMatrix packed;
    std::vector<std::uint8_t> weights;
    std::vector<std::uint8_t> scales;

    RandomMatrix(std::size_t k, std::size_t n, Kind kind, std::size_t block, bool odd, std::mt19937 &random,
                 bool minima = false)
        : packed{k, n, kind, block, nullptr, nullptr, minima} {
        const std::size_t skip = odd ? 1 : 0;
        weights.resize(packed.tiles() * packed.tile_bytes() + skip);
        scales.resize(packed.tiles() * packed.blocks() * 2 * packed.scale_line() + skip);
        packed.weights = weights.data() + skip;
        packed.scales = reinterpret_cast<const std::uint16_t *>(scales.data() + skip);
        if (block != 0) {
            for (auto &byte : weights)
                byte = static_cast<std::uint8_t>(random());
            fill_scales(skip, random);
        } else {
            fill_floats(skip, random);
        }
    }

  private:
    static std::uint16_t half(std::mt19937 &random,
                              unsigned exponent) { // a normal number, 2^(exponent - 15) to twice that
        return static_cast<std::uint16_t>(exponent << 10 | (random() & 1023u));
    }

    void fill_scales(std::size_t skip, std::mt19937 &random) {
        const std::size_t line = packed.scale_line();
        for (std::size_t i = 0; i < packed.tiles() * packed.blocks() * line; ++i) {
            const bool padding = i / (packed.blocks() * line) * 16 + i % 16 >= packed.n,
                       minimum = i % line >= 16;
            std::uint16_t scale = padding ? 0 : random() % 50 == 0 ? random() & 1023u : half(random, 8);
            if (minimum)
                scale = static_cast<std::uint16_t>(scale | (random() & 1u) << 15);
            std::memcpy(scales.data() + skip + 2 * i, &scale, 2);
        }
    }

    void fill_floats(std::size_t skip, std::mt19937 &random) {
        const std::size_t width = packed.kind == Kind::single ? 4 : 2;
        std::normal_distribution<float> normal(0.0f, 0.05f);
        for (std::size_t i = 0; i < packed.tiles() * packed.k * 16; ++i) {
            const float value = normal(random);
            std::uint32_t bits;
            std::memcpy(&bits, &value, 4);
            if (packed.kind == Kind::half)
                bits = half(random, 10) | (random() & 1u) << 15;
            else if (packed.kind == Kind::bfloat)
                bits >>= 16;
            std::memcpy(weights.data() + skip + width * i, &bits, width); // the low bytes: little endian
        }
    }
};

inline double double_of_half(std::uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double size =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return half >> 15 ? -size : size;
}

// Weight (k, n), as double.
inline double code_at(const PackedMatrix &w, std::size_t k, std::size_t n) {
    const auto *tile = static_cast<const std::uint8_t *>(w.weights) + n / 16 * w.tile_bytes();
    const std::size_t at = n % 16 * 4 + k % 4;
    const auto low = [&](const std::uint8_t *from) {
        return from[k / 8 * 64 + at] >> (k % 8 < 4 ? 0 : 4) & 15;
    };
    if (w.kind == Kind::codes8)
        return tile[k / 4 * 64 + at] - 128;
    if (w.kind == Kind::codes4)
        return low(tile) - (w.minima ? 0 : 8);
    if (w.kind == Kind::codes5) { // a line more in 32 k
        const int upper = tile[k / 32 * 320 + at] >> (k % 32 / 4) & 1;
        return upper * 16 + low(tile + (k / 32 + 1) * 64) - (w.minima ? 0 : 16);
    }
    if (w.kind == Kind::codes6) { // a line more in 16 k
        const int upper = tile[k / 16 * 192 + at] >> (k % 16 / 4 * 2) & 3;
        return upper * 16 + low(tile + (k / 16 + 1) * 64) - (w.minima ? 0 : 32);
    }
    std::uint32_t bits = 0;
    const std::size_t width = w.kind == Kind::single ? 4 : 2;
    std::memcpy(&bits, tile + width * (k * 16 + n % 16), width);
    if (w.kind == Kind::half)
        return double_of_half(static_cast<std::uint16_t>(bits));
    if (w.kind == Kind::bfloat)
        bits <<= 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline double half_at(const PackedMatrix &w, std::size_t block, std::size_t n, std::size_t further) {
    std::uint16_t half;
    const std::size_t line = w.minima ? 32 : 16;
    std::memcpy(&half,
                reinterpret_cast<const char *>(w.scales) +
                    2 * ((n / 16 * w.blocks() + block) * line + n % 16 + further),
                2);
    return double_of_half(half);
}

inline double scale_at(const PackedMatrix &w, std::size_t block, std::size_t n) {
    return w.block == 0 ? 1.0 : half_at(w, block, n, 0);
}

inline double minimum_at(const PackedMatrix &w, std::size_t block, std::size_t n) {
    return w.minima ? half_at(w, block, n, 16) : 0.0;
}

// Numbers of k of which a block is a multiple; 0 for floats, which have no blocks.
inline std::size_t block_unit(Kind kind) {
    return kind == Kind::codes5 ? 32 : kind == Kind::codes6 ? 16 : coded(kind) ? 8 : 0;
}

// Threads that wait for the next call; the caller works too.
class ThreadPool {
  public:
    explicit ThreadPool(std::size_t threads) {
        for (std::size_t i = 1; i < threads; ++i)
            threads_.emplace_back([this] { work(); });
    }
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;
    ~ThreadPool() {
        stop_.store(true);
        round_.fetch_add(1);
        for (auto &thread : threads_)
            thread.join();
    }

    Pool pool() {
        return {this, [](void *self, void (*task)(void *, std::size_t), std::size_t count, void *user) {
                    static_cast<ThreadPool *>(self)->run(task, count, user);
                }};
    }

  private:
    std::vector<std::thread> threads_;
    std::atomic<bool> stop_{false};
    std::atomic<std::size_t> round_{0}, next_{0}, done_{0};
    void (*task_)(void *, std::size_t) = nullptr;
    std::size_t count_ = 0;
    void *user_ = nullptr;

    void run(void (*task)(void *, std::size_t), std::size_t count, void *user) {
        task_ = task;
        count_ = count;
        user_ = user;
        next_.store(0);
        done_.store(0);
        round_.fetch_add(1);
        take();
        while (done_.load() != threads_.size())
            std::this_thread::yield();
    }

    void take() {
        for (std::size_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1))
            task_(user_, i);
    }

    void work() {
        for (std::size_t seen = 0;;) {
            for (int spin = 0; round_.load() == seen; ++spin)
                if (spin > 20000)
                    std::this_thread::yield();
            ++seen;
            if (stop_.load())
                return;
            take();
            done_.fetch_add(1);
        }
    }
};

} // namespace paceline::testing
