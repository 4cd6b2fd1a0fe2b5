// Memory for one call on one thread, kept for the next call. It only grows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace paceline {

constexpr std::size_t scratch_alignment = 64;

constexpr std::size_t aligned(std::size_t bytes) {
    return (bytes + scratch_alignment - 1) / scratch_alignment * scratch_alignment;
}

class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    ~Scratch() { std::free(memory_); }

    // Aligned; what was there before is lost. Throws std::bad_alloc.
    char *reserve(std::size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            size_ = 0;
            memory_ = std::malloc(bytes + scratch_alignment);
            if (memory_ == nullptr)
                throw std::bad_alloc();
            size_ = bytes;
        }
        const auto address = reinterpret_cast<std::uintptr_t>(memory_);
        return static_cast<char *>(memory_) + (aligned(address) - address);
    }

  private:
    void *memory_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace paceline
