// Sixteen floats at once in plain C++. The vocabulary is explained in lanes_avx512.h.
#pragma once
#include "inline.h"
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

// The long ones stay functions and loops stay loops: unrolled, they take minutes to compile and run no
// faster.
#undef PACELINE_UNROLL
#define PACELINE_UNROLL
#if defined(_MSC_VER) && !defined(__clang__)
#define PACELINE_CALLED [[maybe_unused]] static __declspec(noinline)
#else
#define PACELINE_CALLED [[maybe_unused]] __attribute__((noinline)) static
#endif

namespace paceline {
namespace {

constexpr std::size_t lane_count = 16;
constexpr int lane_registers = 4;

struct Lanes {
    float v[16];
};
struct Ints {
    std::int32_t v[16];
};
struct Mask {
    std::uint32_t v[16]; // all bits or none
};

PACELINE_INLINE std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

PACELINE_INLINE float of_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// a * b + c, rounded once. Without a fused instruction: the product is exact in double, the sum is rounded
// there to odd (its last bit says that something was cut off), and then rounding to float is the only
// rounding that counts.
PACELINE_INLINE float fused(float a, float b, float c) {
#if defined(FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)
    return ::fmaf(a, b, c);
#else
    const double product = static_cast<double>(a) * static_cast<double>(b), addend = c;
    const double sum = product + addend, part = sum - product;
    const double lost = (product - (sum - part)) + (addend - part);
    std::uint64_t bits, cut; // whole numbers and no branches, so that compilers do several at once
    std::memcpy(&bits, &sum, sizeof bits);
    std::memcpy(&cut, &lost, sizeof cut);
    const std::uint64_t size = cut << 1, any = (size | (std::uint64_t{0} - size)) >> 63;
    const std::uint64_t against = (bits ^ cut) >> 63; // the cut off part points to zero
    bits += (any & ~bits) - ((any & ~bits & against) << 1);
    double odd;
    std::memcpy(&odd, &bits, sizeof odd);
    const float plain = static_cast<float>(sum), exact = static_cast<float>(odd);
    return plain - plain == 0.0f ? exact : plain; // infinity and NaN have no last bit
#endif
}

PACELINE_INLINE float float_of_half(std::uint16_t half) {
    const std::uint32_t size = half & 0x7fffu, sign = (half & 0x8000u) << 16;
    const std::uint32_t normal = (size << 13) + (112u << 23), special = (size << 13) | 0x7f800000u;
    const std::uint32_t small = bits_of(static_cast<float>(static_cast<std::int32_t>(size)) * 0x1p-24f);
    const std::uint32_t quiet = size > 0x7c00u ? 0x400000u : 0u;
    return of_bits(sign | (size < 0x400u ? small : size >= 0x7c00u ? special | quiet : normal));
}

PACELINE_INLINE std::uint16_t half_of_float(float x) { // half to even
    const std::uint32_t all = bits_of(x), size = all & 0x7fffffffu, sign = (all >> 16) & 0x8000u;
    const std::uint32_t normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
    const std::uint32_t small = bits_of(of_bits(size) + 0.5f) - bits_of(0.5f);
    const std::uint32_t special = size > 0x7f800000u ? 0x7e00u | ((size >> 13) & 0x3ffu) : 0x7c00u;
    return static_cast<std::uint16_t>(sign | (size < 0x38800000u    ? small
                                              : size >= 0x477ff000u ? special
                                                                    : normal));
}

// One line for each function: `expression` of lane i.
#define PACELINE_EACH(Type, expression)                                                                      \
    Type out;                                                                                                \
    for (std::size_t i = 0; i < 16; ++i)                                                                     \
        out.v[i] = expression;                                                                               \
    return out;

// clang-format off
PACELINE_INLINE Lanes zero() { PACELINE_EACH(Lanes, 0.0f) }
PACELINE_INLINE Lanes set1(float x) { PACELINE_EACH(Lanes, x) }
PACELINE_INLINE Ints set1_int(std::int32_t x) { PACELINE_EACH(Ints, x) }

PACELINE_INLINE Lanes load(const float *from) { Lanes out; std::memcpy(out.v, from, sizeof out.v); return out; }
PACELINE_INLINE Lanes load_part(const float *from, std::size_t count) { PACELINE_EACH(Lanes, i < count ? from[i] : 0.0f) }
PACELINE_INLINE void store(float *to, Lanes a) { std::memcpy(to, a.v, sizeof a.v); }
PACELINE_INLINE void store_part(float *to, std::size_t count, Lanes a) { for (std::size_t i = 0; i < count; ++i) to[i] = a.v[i]; }
PACELINE_INLINE Ints load_ints(const std::int32_t *from) { Ints out; std::memcpy(out.v, from, sizeof out.v); return out; }
PACELINE_INLINE void store_ints(std::int32_t *to, Ints a) { std::memcpy(to, a.v, sizeof a.v); }

PACELINE_INLINE Lanes add(Lanes a, Lanes b) { PACELINE_EACH(Lanes, a.v[i] + b.v[i]) }
PACELINE_INLINE Lanes sub(Lanes a, Lanes b) { PACELINE_EACH(Lanes, a.v[i] - b.v[i]) }
PACELINE_INLINE Lanes mul(Lanes a, Lanes b) { PACELINE_EACH(Lanes, a.v[i] * b.v[i]) }
PACELINE_INLINE Lanes div(Lanes a, Lanes b) { PACELINE_EACH(Lanes, a.v[i] / b.v[i]) }
PACELINE_INLINE Lanes sqrt(Lanes a) { PACELINE_EACH(Lanes, ::sqrtf(a.v[i])) }
PACELINE_CALLED Lanes fma(Lanes a, Lanes b, Lanes c) { PACELINE_EACH(Lanes, fused(a.v[i], b.v[i], c.v[i])) }
PACELINE_CALLED Lanes fnma(Lanes a, Lanes b, Lanes c) { PACELINE_EACH(Lanes, fused(-a.v[i], b.v[i], c.v[i])) }
PACELINE_INLINE Lanes max(Lanes a, Lanes b) { PACELINE_EACH(Lanes, a.v[i] > b.v[i] ? a.v[i] : b.v[i]) }
PACELINE_INLINE Lanes min(Lanes a, Lanes b) { PACELINE_EACH(Lanes, a.v[i] < b.v[i] ? a.v[i] : b.v[i]) }
PACELINE_INLINE Lanes abs(Lanes a) { PACELINE_EACH(Lanes, of_bits(bits_of(a.v[i]) & 0x7fffffffu)) }
PACELINE_INLINE Lanes neg(Lanes a) { PACELINE_EACH(Lanes, -a.v[i]) }
PACELINE_INLINE Lanes with_sign(Lanes size, Lanes sign) { PACELINE_EACH(Lanes, of_bits((bits_of(size.v[i]) & 0x7fffffffu) | (bits_of(sign.v[i]) & 0x80000000u))) }

PACELINE_INLINE Mask less(Lanes a, Lanes b) { PACELINE_EACH(Mask, a.v[i] < b.v[i] ? ~0u : 0u) }
PACELINE_INLINE Mask equal(Lanes a, Lanes b) { PACELINE_EACH(Mask, a.v[i] == b.v[i] ? ~0u : 0u) }
PACELINE_INLINE Mask is_nan(Lanes a) { PACELINE_EACH(Mask, a.v[i] != a.v[i] ? ~0u : 0u) }
PACELINE_INLINE Mask mask_of_bits(std::uint32_t bits) { PACELINE_EACH(Mask, (bits >> i & 1u) != 0 ? ~0u : 0u) }
PACELINE_INLINE Lanes select(Mask m, Lanes yes, Lanes no) { PACELINE_EACH(Lanes, of_bits((bits_of(yes.v[i]) & m.v[i]) | (bits_of(no.v[i]) & ~m.v[i]))) }

// 1.5 * 2^23 has a unit of 1 in the last place, so the sum is rounded to a whole number, which stands in its low bits.
PACELINE_INLINE Ints round_to_int(Lanes a) { PACELINE_EACH(Ints, static_cast<std::int32_t>(bits_of(a.v[i] + 12582912.0f) - 0x4b400000u)) }
PACELINE_INLINE Lanes to_float(Ints a) { PACELINE_EACH(Lanes, static_cast<float>(a.v[i])) }
PACELINE_INLINE Ints bits_of(Lanes a) { PACELINE_EACH(Ints, static_cast<std::int32_t>(bits_of(a.v[i]))) }
PACELINE_INLINE Lanes of_bits(Ints a) { PACELINE_EACH(Lanes, of_bits(static_cast<std::uint32_t>(a.v[i]))) }
PACELINE_INLINE Ints add(Ints a, Ints b) { PACELINE_EACH(Ints, a.v[i] + b.v[i]) }
PACELINE_INLINE Ints sub(Ints a, Ints b) { PACELINE_EACH(Ints, a.v[i] - b.v[i]) }
template <int bits> PACELINE_INLINE Ints shift_left(Ints a) { PACELINE_EACH(Ints, static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) << bits)) }
template <int bits> PACELINE_INLINE Ints shift_right(Ints a) { PACELINE_EACH(Ints, a.v[i] >> bits) }

PACELINE_INLINE Lanes times_power_of_two(Lanes a, Lanes n) {
    const Ints whole = round_to_int(n), half = shift_right<1>(whole), rest = sub(whole, half), bias = set1_int(127);
    return mul(mul(a, of_bits(shift_left<23>(add(half, bias)))), of_bits(shift_left<23>(add(rest, bias))));
}

PACELINE_INLINE std::uint16_t word_at(const std::uint16_t *from, std::size_t i) { std::uint16_t word; std::memcpy(&word, from + i, sizeof word); return word; } // at any address
PACELINE_CALLED Lanes load_half(const std::uint16_t *from) { PACELINE_EACH(Lanes, float_of_half(word_at(from, i))) }
PACELINE_CALLED void store_half(std::uint16_t *to, Lanes a) { for (std::size_t i = 0; i < 16; ++i) to[i] = half_of_float(a.v[i]); }
PACELINE_CALLED Lanes round_to_half(Lanes a) { PACELINE_EACH(Lanes, float_of_half(half_of_float(a.v[i]))) }
PACELINE_INLINE Lanes load_bfloat(const std::uint16_t *from) { PACELINE_EACH(Lanes, of_bits(static_cast<std::uint32_t>(word_at(from, i)) << 16)) }
PACELINE_INLINE Lanes load_int8(const std::int8_t *from) { PACELINE_EACH(Lanes, static_cast<float>(from[i])) }
PACELINE_INLINE void store_int8(std::int8_t *to, Ints a) { for (std::size_t i = 0; i < 16; ++i) to[i] = static_cast<std::int8_t>(a.v[i]); }
// clang-format on
#undef PACELINE_EACH

PACELINE_INLINE float sum(Lanes a) {
    for (std::size_t width = 8; width > 0; width /= 2)
        for (std::size_t i = 0; i < width; ++i)
            a.v[i] += a.v[i + width];
    return a.v[0];
}

PACELINE_INLINE float largest(Lanes a) {
    for (std::size_t width = 8; width > 0; width /= 2)
        for (std::size_t i = 0; i < width; ++i)
            a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
    return a.v[0];
}

PACELINE_CALLED void transpose(Lanes (&a)[16]) {
    for (std::size_t i = 0; i < 16; ++i)
        for (std::size_t j = i + 1; j < 16; ++j) {
            const float other = a[i].v[j];
            a[i].v[j] = a[j].v[i];
            a[j].v[i] = other;
        }
}

// a[j] lane i = from[i * stride + j]
PACELINE_INLINE void load_transposed(const float *from, std::size_t stride, Lanes (&a)[16]) {
    PACELINE_UNROLL
    for (std::size_t i = 0; i < 16; ++i)
        a[i] = load(from + i * stride);
    transpose(a);
}

} // namespace
} // namespace paceline
