// Random numbers that are the same on every machine and with every compiler.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace paceline {

// Integer arithmetic and powers of two only.
struct Random {
    std::uint64_t state;

    std::uint64_t next() {
        state += 0x9e3779b97f4a7c15u;
        std::uint64_t z = state;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    std::size_t below(std::size_t limit) { return static_cast<std::size_t>(next() % limit); }
    bool chance(std::size_t one_in) { return below(one_in) == 0; }
    float uniform() {
        return static_cast<float>(static_cast<std::int32_t>(next() >> 40) - (1 << 23)) * 0x1p-23f;
    }
};

// A product of uniform numbers has many sizes: closer to real activations than one uniform number.
inline std::vector<float> numbers(Random &random, std::size_t count) {
    std::vector<float> made(count);
    for (float &value : made)
        value = random.uniform() * random.uniform() * 4.0f;
    return made;
}

inline std::vector<std::uint8_t> bytes(Random &random, std::size_t count) {
    std::vector<std::uint8_t> made(count);
    for (std::uint8_t &value : made)
        value = static_cast<std::uint8_t>(random.next());
    return made;
}

// Finite numbers of moderate size, zero and subnormals included. One draw, cut up: the order in which C++
// evaluates two draws in one expression is the compiler's choice.
inline std::uint16_t half_bits(Random &random) {
    const std::uint64_t drawn = random.next();
    return static_cast<std::uint16_t>((drawn & 0x83ffu) | (((drawn >> 16) % 17) << 10));
}

inline std::uint16_t bfloat_bits(Random &random) {
    const std::uint64_t drawn = random.next();
    return static_cast<std::uint16_t>((drawn & 0x807fu) | ((112 + (drawn >> 16) % 18) << 7));
}

} // namespace paceline
