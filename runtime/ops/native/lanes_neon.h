// Sixteen floats at once with ARM's NEON, as four quarters. The vocabulary is explained in lanes_avx512.h.
#pragma once
#include "inline.h"
#include <arm_neon.h>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace paceline {
namespace {

constexpr std::size_t lane_count = 16;
constexpr int lane_registers = 8;

struct Lanes {
    float32x4_t q0, q1, q2, q3;
};
struct Ints {
    int32x4_t q0, q1, q2, q3;
};
struct Mask {
    uint32x4_t q0, q1, q2, q3;
};

// One intrinsic on each quarter.
#define PACELINE_EACH(f, a) {f((a).q0), f((a).q1), f((a).q2), f((a).q3)}
#define PACELINE_EACH_2(f, a, b) {f((a).q0, (b).q0), f((a).q1, (b).q1), f((a).q2, (b).q2), f((a).q3, (b).q3)}
#define PACELINE_EACH_3(f, a, b, c)                                                                          \
    {f((a).q0, (b).q0, (c).q0), f((a).q1, (b).q1, (c).q1), f((a).q2, (b).q2, (c).q2),                        \
     f((a).q3, (b).q3, (c).q3)}

// Through bytes, because packed weights may stand anywhere.
PACELINE_INLINE float32x4_t load_4(const float *from) {
    return vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const std::uint8_t *>(from)));
}
PACELINE_INLINE uint16x4_t load_4(const std::uint16_t *from) {
    return vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const std::uint8_t *>(from)));
}

// clang-format off
PACELINE_INLINE Lanes set1(float x) { const float32x4_t all = vdupq_n_f32(x); return {all, all, all, all}; }
PACELINE_INLINE Lanes zero() { return set1(0.0f); }
PACELINE_INLINE Ints set1_int(std::int32_t x) { const int32x4_t all = vdupq_n_s32(x); return {all, all, all, all}; }

PACELINE_INLINE Lanes load(const float *from) { return {load_4(from), load_4(from + 4), load_4(from + 8), load_4(from + 12)}; }
PACELINE_INLINE void store(float *to, Lanes a) { vst1q_f32(to, a.q0); vst1q_f32(to + 4, a.q1); vst1q_f32(to + 8, a.q2); vst1q_f32(to + 12, a.q3); }
PACELINE_INLINE Lanes load_part(const float *from, std::size_t count) {
    float all[lane_count] = {};
    std::memcpy(all, from, count * sizeof(float));
    return load(all);
}
PACELINE_INLINE void store_part(float *to, std::size_t count, Lanes a) {
    float all[lane_count];
    store(all, a);
    std::memcpy(to, all, count * sizeof(float));
}
PACELINE_INLINE Ints load_ints(const std::int32_t *from) { return {vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}; }
PACELINE_INLINE void store_ints(std::int32_t *to, Ints a) { vst1q_s32(to, a.q0); vst1q_s32(to + 4, a.q1); vst1q_s32(to + 8, a.q2); vst1q_s32(to + 12, a.q3); }

PACELINE_INLINE Lanes add(Lanes a, Lanes b) { return PACELINE_EACH_2(vaddq_f32, a, b); }
PACELINE_INLINE Lanes sub(Lanes a, Lanes b) { return PACELINE_EACH_2(vsubq_f32, a, b); }
PACELINE_INLINE Lanes mul(Lanes a, Lanes b) { return PACELINE_EACH_2(vmulq_f32, a, b); }
PACELINE_INLINE Lanes div(Lanes a, Lanes b) { return PACELINE_EACH_2(vdivq_f32, a, b); }
PACELINE_INLINE Lanes sqrt(Lanes a) { return PACELINE_EACH(vsqrtq_f32, a); }
PACELINE_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return PACELINE_EACH_3(vfmaq_f32, c, a, b); }
PACELINE_INLINE Lanes fnma(Lanes a, Lanes b, Lanes c) { return PACELINE_EACH_3(vfmsq_f32, c, a, b); }
PACELINE_INLINE Lanes abs(Lanes a) { return PACELINE_EACH(vabsq_f32, a); }
PACELINE_INLINE Lanes neg(Lanes a) { return PACELINE_EACH(vnegq_f32, a); }

PACELINE_INLINE Mask less(Lanes a, Lanes b) { return PACELINE_EACH_2(vcltq_f32, a, b); }
PACELINE_INLINE Mask equal(Lanes a, Lanes b) { return PACELINE_EACH_2(vceqq_f32, a, b); }
PACELINE_INLINE Mask is_nan(Lanes a) { const Mask number = equal(a, a); return PACELINE_EACH(vmvnq_u32, number); }
PACELINE_INLINE Mask mask_of_bits(std::uint32_t bits) {
    const std::uint32_t first[4] = {1, 2, 4, 8};
    const uint32x4_t all = vdupq_n_u32(bits), bit = vld1q_u32(first);
    return {vtstq_u32(all, bit), vtstq_u32(all, vshlq_n_u32(bit, 4)), vtstq_u32(all, vshlq_n_u32(bit, 8)), vtstq_u32(all, vshlq_n_u32(bit, 12))};
}
PACELINE_INLINE Lanes select(Mask m, Lanes yes, Lanes no) { return PACELINE_EACH_3(vbslq_f32, m, yes, no); }
// Not vmaxq and vminq: those give NaN where one number is NaN, and know which zero is larger.
PACELINE_INLINE Lanes max(Lanes a, Lanes b) { return select(less(b, a), a, b); }
PACELINE_INLINE Lanes min(Lanes a, Lanes b) { return select(less(a, b), a, b); }
PACELINE_INLINE Lanes with_sign(Lanes size, Lanes sign) {
    const uint32x4_t bit = vdupq_n_u32(0x80000000u);
    return select({bit, bit, bit, bit}, sign, size);
}

PACELINE_INLINE Ints round_to_int(Lanes a) { return PACELINE_EACH(vcvtnq_s32_f32, a); }
PACELINE_INLINE Lanes to_float(Ints a) { return PACELINE_EACH(vcvtq_f32_s32, a); }
PACELINE_INLINE Ints bits_of(Lanes a) { return PACELINE_EACH(vreinterpretq_s32_f32, a); }
PACELINE_INLINE Lanes of_bits(Ints a) { return PACELINE_EACH(vreinterpretq_f32_s32, a); }
PACELINE_INLINE Ints add(Ints a, Ints b) { return PACELINE_EACH_2(vaddq_s32, a, b); }
PACELINE_INLINE Ints sub(Ints a, Ints b) { return PACELINE_EACH_2(vsubq_s32, a, b); }
template <int bits> PACELINE_INLINE Ints shift_left(Ints a) { return {vshlq_n_s32(a.q0, bits), vshlq_n_s32(a.q1, bits), vshlq_n_s32(a.q2, bits), vshlq_n_s32(a.q3, bits)}; }
template <int bits> PACELINE_INLINE Ints shift_right(Ints a) { return {vshrq_n_s32(a.q0, bits), vshrq_n_s32(a.q1, bits), vshrq_n_s32(a.q2, bits), vshrq_n_s32(a.q3, bits)}; }

PACELINE_INLINE Lanes times_power_of_two(Lanes a, Lanes n) {
    // In two steps, so that each factor is a normal number; only the second one can round.
    const Ints whole = round_to_int(n), half = shift_right<1>(whole), rest = sub(whole, half), bias = set1_int(127);
    return mul(mul(a, of_bits(shift_left<23>(add(half, bias)))), of_bits(shift_left<23>(add(rest, bias))));
}

// Conversions between half and single precision are part of every 64-bit ARM.
PACELINE_INLINE float32x4_t half_to_single(uint16x4_t a) { return vcvt_f32_f16(vreinterpret_f16_u16(a)); }
PACELINE_INLINE uint16x4_t single_to_half(float32x4_t a) { return vreinterpret_u16_f16(vcvt_f16_f32(a)); }
PACELINE_INLINE Lanes load_half(const std::uint16_t *from) {
    return {half_to_single(load_4(from)), half_to_single(load_4(from + 4)), half_to_single(load_4(from + 8)), half_to_single(load_4(from + 12))};
}
PACELINE_INLINE void store_half(std::uint16_t *to, Lanes a) {
    vst1_u16(to, single_to_half(a.q0)); vst1_u16(to + 4, single_to_half(a.q1)); vst1_u16(to + 8, single_to_half(a.q2)); vst1_u16(to + 12, single_to_half(a.q3));
}
PACELINE_INLINE float32x4_t quarter_to_half(float32x4_t a) { return half_to_single(single_to_half(a)); }
PACELINE_INLINE Lanes round_to_half(Lanes a) { return PACELINE_EACH(quarter_to_half, a); }
PACELINE_INLINE float32x4_t bfloat_to_single(uint16x4_t a) { return vreinterpretq_f32_u32(vshll_n_u16(a, 16)); }
PACELINE_INLINE Lanes load_bfloat(const std::uint16_t *from) {
    return {bfloat_to_single(load_4(from)), bfloat_to_single(load_4(from + 4)), bfloat_to_single(load_4(from + 8)), bfloat_to_single(load_4(from + 12))};
}
PACELINE_INLINE Lanes load_int8(const std::int8_t *from) {
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return to_float({vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))});
}
PACELINE_INLINE void store_int8(std::int8_t *to, Ints a) {
    const int16x8_t low = vcombine_s16(vmovn_s32(a.q0), vmovn_s32(a.q1)), high = vcombine_s16(vmovn_s32(a.q2), vmovn_s32(a.q3));
    vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
// clang-format on

PACELINE_INLINE float sum(Lanes a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.q0, a.q2), vaddq_f32(a.q1, a.q3));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

PACELINE_INLINE float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

PACELINE_INLINE float largest(Lanes a) {
    const float32x4_t four = larger(larger(a.q0, a.q2), larger(a.q1, a.q3));
    const float32x4_t two = larger(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(larger(two, vextq_f32(two, two, 1)), 0);
}

// Four rows of four numbers, in place.
PACELINE_INLINE void transpose_4(float32x4_t &a, float32x4_t &b, float32x4_t &c, float32x4_t &d) {
    const float64x2_t t0 = vreinterpretq_f64_f32(vtrn1q_f32(a, b)),
                      t1 = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    const float64x2_t t2 = vreinterpretq_f64_f32(vtrn1q_f32(c, d)),
                      t3 = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    a = vreinterpretq_f32_f64(vtrn1q_f64(t0, t2));
    b = vreinterpretq_f32_f64(vtrn1q_f64(t1, t3));
    c = vreinterpretq_f32_f64(vtrn2q_f64(t0, t2));
    d = vreinterpretq_f32_f64(vtrn2q_f64(t1, t3));
}

// Through memory: 16 rows of 16 numbers are twice as many registers as there are.
PACELINE_INLINE void transpose(Lanes (&a)[16]) {
    float turned[16][lane_count];
    for (int row = 0; row < 16; row += 4) {
        Lanes *r = a + row;
        transpose_4(r[0].q0, r[1].q0, r[2].q0, r[3].q0);
        transpose_4(r[0].q1, r[1].q1, r[2].q1, r[3].q1);
        transpose_4(r[0].q2, r[1].q2, r[2].q2, r[3].q2);
        transpose_4(r[0].q3, r[1].q3, r[2].q3, r[3].q3);
        for (int i = 0; i < 4; ++i) {
            vst1q_f32(&turned[i][row], r[i].q0);
            vst1q_f32(&turned[4 + i][row], r[i].q1);
            vst1q_f32(&turned[8 + i][row], r[i].q2);
            vst1q_f32(&turned[12 + i][row], r[i].q3);
        }
    }
    for (int i = 0; i < 16; ++i)
        a[i] = load(turned[i]);
}

#undef PACELINE_EACH
#undef PACELINE_EACH_2
#undef PACELINE_EACH_3

// a[j] lane i = from[i * stride + j]
PACELINE_INLINE void load_transposed(const float *from, std::size_t stride, Lanes (&a)[16]) {
    PACELINE_UNROLL
    for (std::size_t i = 0; i < 16; ++i)
        a[i] = load(from + i * stride);
    transpose(a);
}

} // namespace
} // namespace paceline
