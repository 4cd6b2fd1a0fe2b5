// Sixteen floats at once with AVX-512. Every lanes_*.h has the same names with the same bits; a unit includes
// one.
#pragma once
#include "inline.h"
#include "x86.h"
#include <cstddef>
#include <cstdint>
#include <cstring>

// The anonymous namespace keeps the linker from sharing these between units compiled for different machines.
namespace paceline {
namespace {

constexpr std::size_t lane_count = 16;
constexpr int lane_registers = 32; // how many Lanes the machine holds in registers

struct Lanes {
    __m512 v;
};
struct Ints { // sixteen int32
    __m512i v;
};
struct Mask {
    __mmask16 v;
};

PACELINE_INLINE __mmask16 first_lanes(std::size_t count) {
    return static_cast<__mmask16>((1u << count) - 1u);
}

// clang-format off
PACELINE_INLINE Lanes zero() { return {_mm512_setzero_ps()}; }
PACELINE_INLINE Lanes set1(float x) { return {_mm512_set1_ps(x)}; }
PACELINE_INLINE Ints set1_int(std::int32_t x) { return {_mm512_set1_epi32(x)}; }

// _part: the first `count` (0 to 16) lanes; the rest is 0 when loading and not touched when storing.
PACELINE_INLINE Lanes load(const float *from) { return {_mm512_loadu_ps(from)}; }
PACELINE_INLINE Lanes load_part(const float *from, std::size_t count) { return {_mm512_maskz_loadu_ps(first_lanes(count), from)}; }
PACELINE_INLINE void store(float *to, Lanes a) { _mm512_storeu_ps(to, a.v); }
PACELINE_INLINE void store_part(float *to, std::size_t count, Lanes a) { _mm512_mask_storeu_ps(to, first_lanes(count), a.v); }
PACELINE_INLINE Ints load_ints(const std::int32_t *from) { return {_mm512_loadu_si512(from)}; }
PACELINE_INLINE void store_ints(std::int32_t *to, Ints a) { _mm512_storeu_si512(to, a.v); }

PACELINE_INLINE Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
PACELINE_INLINE Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
PACELINE_INLINE Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
PACELINE_INLINE Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
PACELINE_INLINE Lanes sqrt(Lanes a) { return {_mm512_sqrt_ps(a.v)}; }
// a * b + c and c - a * b, rounded once
PACELINE_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
PACELINE_INLINE Lanes fnma(Lanes a, Lanes b, Lanes c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
// a > b ? a : b and a < b ? a : b, so b where one of them is NaN
PACELINE_INLINE Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
PACELINE_INLINE Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
PACELINE_INLINE Lanes abs(Lanes a) { return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff)))}; }
PACELINE_INLINE Lanes neg(Lanes a) { return {_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(INT32_MIN)))}; }
PACELINE_INLINE Lanes with_sign(Lanes size, Lanes sign) {
    return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_set1_epi32(INT32_MIN), _mm512_castps_si512(sign.v), _mm512_castps_si512(size.v), 0xca))};
}

PACELINE_INLINE Mask less(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
PACELINE_INLINE Mask equal(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
PACELINE_INLINE Mask is_nan(Lanes a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
PACELINE_INLINE Mask mask_of_bits(std::uint32_t bits) { return {static_cast<__mmask16>(bits)}; } // bit i is lane i
PACELINE_INLINE Lanes select(Mask m, Lanes yes, Lanes no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }

PACELINE_INLINE Ints round_to_int(Lanes a) { return {_mm512_cvtps_epi32(a.v)}; } // half to even; |a| <= 2^22
PACELINE_INLINE Lanes to_float(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
PACELINE_INLINE Ints bits_of(Lanes a) { return {_mm512_castps_si512(a.v)}; }
PACELINE_INLINE Lanes of_bits(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
PACELINE_INLINE Ints add(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
PACELINE_INLINE Ints sub(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
template <int bits> PACELINE_INLINE Ints shift_left(Ints a) { return {_mm512_slli_epi32(a.v, bits)}; }
template <int bits> PACELINE_INLINE Ints shift_right(Ints a) { return {_mm512_srai_epi32(a.v, bits)}; } // keeps the sign

// a * 2^n rounded once, n a whole number from -252 to 254
PACELINE_INLINE Lanes times_power_of_two(Lanes a, Lanes n) { return {_mm512_scalef_ps(a.v, n.v)}; }

PACELINE_INLINE Lanes load_half(const std::uint16_t *from) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)))}; }
PACELINE_INLINE void store_half(std::uint16_t *to, Lanes a) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
PACELINE_INLINE Lanes round_to_half(Lanes a) { return {_mm512_cvtph_ps(_mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))}; }
PACELINE_INLINE Lanes load_bfloat(const std::uint16_t *from) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))), 16))}; }
PACELINE_INLINE Lanes load_int8(const std::int8_t *from) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))))}; }
PACELINE_INLINE void store_int8(std::int8_t *to, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(a.v)); } // -128 to 127
// clang-format on

// Over the lanes: (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
PACELINE_INLINE float sum(Lanes a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

PACELINE_INLINE float largest(Lanes a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// The 16 x 16 matrix whose rows are a[0] to a[15], in place.
PACELINE_INLINE void transpose(Lanes (&a)[16]) {
    __m512i t[16], u[16];
    PACELINE_UNROLL
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_castps_si512(_mm512_unpacklo_ps(a[2 * i].v, a[2 * i + 1].v));
        t[2 * i + 1] = _mm512_castps_si512(_mm512_unpackhi_ps(a[2 * i].v, a[2 * i + 1].v));
    }
    PACELINE_UNROLL
    for (int i = 0; i < 4; ++i) {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    PACELINE_UNROLL
    for (int i = 0; i < 4; ++i) {
        const __m512i even_low = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
        const __m512i even_high = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
        const __m512i odd_high = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
        a[i].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(even_low, even_high, 0x88));
        a[4 + i].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
        a[8 + i].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(even_low, even_high, 0xdd));
        a[12 + i].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
    }
}

// a[j] lane i = from[i * stride + j]: quarters of four rows are put together while loading, then turned in
// fours.
PACELINE_INLINE void load_transposed(const float *from, std::size_t stride, Lanes (&a)[16]) {
    PACELINE_UNROLL
    for (std::size_t q = 0; q < 4; ++q) {
        __m512 rows[4];
        PACELINE_UNROLL
        for (std::size_t i = 0; i < 4; ++i) {
            const float *row = from + i * stride + 4 * q;
            __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(row));
            x = _mm512_mask_broadcast_f32x4(x, 0x00f0, _mm_loadu_ps(row + 4 * stride));
            x = _mm512_mask_broadcast_f32x4(x, 0x0f00, _mm_loadu_ps(row + 8 * stride));
            rows[i] = _mm512_mask_broadcast_f32x4(x, 0xf000, _mm_loadu_ps(row + 12 * stride));
        }
        const __m512 t0 = _mm512_unpacklo_ps(rows[0], rows[1]), t1 = _mm512_unpackhi_ps(rows[0], rows[1]);
        const __m512 t2 = _mm512_unpacklo_ps(rows[2], rows[3]), t3 = _mm512_unpackhi_ps(rows[2], rows[3]);
        a[4 * q].v = _mm512_shuffle_ps(t0, t2, 0x44);
        a[4 * q + 1].v = _mm512_shuffle_ps(t0, t2, 0xee);
        a[4 * q + 2].v = _mm512_shuffle_ps(t1, t3, 0x44);
        a[4 * q + 3].v = _mm512_shuffle_ps(t1, t3, 0xee);
    }
}

// Sixteen bytes of each of four rows that stand 4 * stride bytes apart, one row a quarter.
PACELINE_INLINE __m512i load_quarters(const std::int8_t *from, std::size_t stride) {
    const auto row = [&](std::size_t i) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i * stride));
    };
    __m512i x = _mm512_castsi128_si512(row(0));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, row(4));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, row(8));
    return _mm512_mask_broadcast_i32x4(x, 0xf000, row(12));
}

// The same for codes. Turned as words of four, lane i of a word has four neighbours of row i: shifts take
// them apart.
PACELINE_INLINE void load_transposed(const std::int8_t *from, std::size_t stride, Lanes (&a)[16]) {
    const __m512i r0 = load_quarters(from, stride), r1 = load_quarters(from + stride, stride);
    const __m512i r2 = load_quarters(from + 2 * stride, stride),
                  r3 = load_quarters(from + 3 * stride, stride);
    const __m512i t0 = _mm512_unpacklo_epi32(r0, r1), t1 = _mm512_unpackhi_epi32(r0, r1);
    const __m512i t2 = _mm512_unpacklo_epi32(r2, r3), t3 = _mm512_unpackhi_epi32(r2, r3);
    const Ints words[4] = {{_mm512_unpacklo_epi64(t0, t2)},
                           {_mm512_unpackhi_epi64(t0, t2)},
                           {_mm512_unpacklo_epi64(t1, t3)},
                           {_mm512_unpackhi_epi64(t1, t3)}};
    PACELINE_UNROLL
    for (int q = 0; q < 4; ++q) {
        a[4 * q] = to_float(shift_right<24>(shift_left<24>(words[q])));
        a[4 * q + 1] = to_float(shift_right<24>(shift_left<16>(words[q])));
        a[4 * q + 2] = to_float(shift_right<24>(shift_left<8>(words[q])));
        a[4 * q + 3] = to_float(shift_right<24>(words[q]));
    }
}

// The same for half precision, turned in eights: the lower half of out[j] is column j, the upper column j
// + 8.
PACELINE_INLINE void load_transposed(const std::uint16_t *from, std::size_t stride, Lanes (&a)[16]) {
    const auto part = [&](std::size_t row, std::size_t column) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + row * stride + column));
    };
    __m512i r[8], t[8], u[8];
    PACELINE_UNROLL
    for (std::size_t i = 0; i < 8; ++i) {
        __m512i x = _mm512_castsi128_si512(part(i, 0));
        x = _mm512_mask_broadcast_i32x4(x, 0x00f0, part(i + 8, 0));
        x = _mm512_mask_broadcast_i32x4(x, 0x0f00, part(i, 8));
        r[i] = _mm512_mask_broadcast_i32x4(x, 0xf000, part(i + 8, 8));
    }
    PACELINE_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
        t[2 * i] = _mm512_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
    }
    PACELINE_UNROLL
    for (std::size_t i = 0; i < 2; ++i) {
        u[4 * i] = _mm512_unpacklo_epi32(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi32(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi32(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi32(t[4 * i + 1], t[4 * i + 3]);
    }
    PACELINE_UNROLL
    for (std::size_t i = 0; i < 4; ++i) {
        const __m512i even = _mm512_unpacklo_epi64(u[i], u[4 + i]),
                      odd = _mm512_unpackhi_epi64(u[i], u[4 + i]);
        a[2 * i].v = _mm512_cvtph_ps(_mm512_castsi512_si256(even));
        a[2 * i + 1].v = _mm512_cvtph_ps(_mm512_castsi512_si256(odd));
        a[8 + 2 * i].v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(even, 1));
        a[9 + 2 * i].v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(odd, 1));
    }
}

} // namespace
} // namespace paceline
