// Sixteen floats at once with AVX2, FMA and F16C, as two halves. The vocabulary is explained in
// lanes_avx512.h.
#pragma once
#include "inline.h"
#include "x86.h"
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace paceline {
namespace {

constexpr std::size_t lane_count = 16;
constexpr int lane_registers = 8;

struct Lanes {
    __m256 low, high;
};
struct Ints {
    __m256i low, high;
};
struct Mask {
    __m256 low, high;
};

// All ones in the first `count` of eight lanes; a count below 0 or above 8 means none or all.
PACELINE_INLINE __m256i first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

PACELINE_INLINE __m256i sign_bits() { return _mm256_set1_epi32(INT32_MIN); }

PACELINE_INLINE __m128i load_128(const void *from) {
    return _mm_loadu_si128(static_cast<const __m128i *>(from));
}

// clang-format off
PACELINE_INLINE Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
PACELINE_INLINE Lanes set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PACELINE_INLINE Ints set1_int(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

PACELINE_INLINE Lanes load(const float *from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
PACELINE_INLINE Lanes load_part(const float *from, std::size_t count) {
    const int n = static_cast<int>(count);
    return {_mm256_maskload_ps(from, first_lanes(n)), n > 8 ? _mm256_maskload_ps(from + 8, first_lanes(n - 8)) : _mm256_setzero_ps()};
}
PACELINE_INLINE void store(float *to, Lanes a) { _mm256_storeu_ps(to, a.low); _mm256_storeu_ps(to + 8, a.high); }
PACELINE_INLINE void store_part(float *to, std::size_t count, Lanes a) {
    const int n = static_cast<int>(count);
    _mm256_maskstore_ps(to, first_lanes(n), a.low);
    if (n > 8)
        _mm256_maskstore_ps(to + 8, first_lanes(n - 8), a.high);
}
PACELINE_INLINE Ints load_ints(const std::int32_t *from) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)), _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 8))};
}
PACELINE_INLINE void store_ints(std::int32_t *to, Ints a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), a.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + 8), a.high);
}

PACELINE_INLINE Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
PACELINE_INLINE Lanes sub(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
PACELINE_INLINE Lanes mul(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
PACELINE_INLINE Lanes div(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
PACELINE_INLINE Lanes sqrt(Lanes a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
PACELINE_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
PACELINE_INLINE Lanes fnma(Lanes a, Lanes b, Lanes c) { return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)}; }
PACELINE_INLINE Lanes max(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
PACELINE_INLINE Lanes min(Lanes a, Lanes b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
PACELINE_INLINE Lanes abs(Lanes a) {
    const __m256 sign = _mm256_castsi256_ps(sign_bits());
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
PACELINE_INLINE Lanes neg(Lanes a) {
    const __m256 sign = _mm256_castsi256_ps(sign_bits());
    return {_mm256_xor_ps(sign, a.low), _mm256_xor_ps(sign, a.high)};
}
PACELINE_INLINE Lanes with_sign(Lanes size, Lanes sign) {
    const __m256 bit = _mm256_castsi256_ps(sign_bits());
    return {_mm256_or_ps(_mm256_andnot_ps(bit, size.low), _mm256_and_ps(bit, sign.low)), _mm256_or_ps(_mm256_andnot_ps(bit, size.high), _mm256_and_ps(bit, sign.high))};
}

PACELINE_INLINE Mask less(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)}; }
PACELINE_INLINE Mask equal(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ)}; }
PACELINE_INLINE Mask is_nan(Lanes a) { return {_mm256_cmp_ps(a.low, a.low, _CMP_UNORD_Q), _mm256_cmp_ps(a.high, a.high, _CMP_UNORD_Q)}; }
PACELINE_INLINE Mask mask_of_bits(std::uint32_t bits) {
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, high), high))};
}
PACELINE_INLINE Lanes select(Mask m, Lanes yes, Lanes no) { return {_mm256_blendv_ps(no.low, yes.low, m.low), _mm256_blendv_ps(no.high, yes.high, m.high)}; }

PACELINE_INLINE Ints round_to_int(Lanes a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
PACELINE_INLINE Lanes to_float(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
PACELINE_INLINE Ints bits_of(Lanes a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
PACELINE_INLINE Lanes of_bits(Ints a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
PACELINE_INLINE Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
PACELINE_INLINE Ints sub(Ints a, Ints b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
template <int bits> PACELINE_INLINE Ints shift_left(Ints a) { return {_mm256_slli_epi32(a.low, bits), _mm256_slli_epi32(a.high, bits)}; }
template <int bits> PACELINE_INLINE Ints shift_right(Ints a) { return {_mm256_srai_epi32(a.low, bits), _mm256_srai_epi32(a.high, bits)}; }

PACELINE_INLINE Lanes times_power_of_two(Lanes a, Lanes n) {
    // In two steps, so that each factor is a normal number; only the second one can round.
    const Ints whole = round_to_int(n), half = shift_right<1>(whole), rest = sub(whole, half), bias = set1_int(127);
    return mul(mul(a, of_bits(shift_left<23>(add(half, bias)))), of_bits(shift_left<23>(add(rest, bias))));
}

PACELINE_INLINE Lanes load_half(const std::uint16_t *from) { return {_mm256_cvtph_ps(load_128(from)), _mm256_cvtph_ps(load_128(from + 8))}; }
PACELINE_INLINE void store_half(std::uint16_t *to, Lanes a) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 8), _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}
PACELINE_INLINE Lanes round_to_half(Lanes a) { return {_mm256_cvtph_ps(_mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT)), _mm256_cvtph_ps(_mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT))}; }
PACELINE_INLINE Lanes load_bfloat(const std::uint16_t *from) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(from)), 16)), _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(from + 8)), 16))};
}
PACELINE_INLINE Lanes load_int8(const std::int8_t *from) {
    const __m128i bytes = load_128(from);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)))};
}
PACELINE_INLINE void store_int8(std::int8_t *to, Ints a) {
    const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(a.low), _mm256_extracti128_si256(a.low, 1));
    const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(a.high), _mm256_extracti128_si256(a.high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_packs_epi16(low, high));
}
// clang-format on

PACELINE_INLINE float sum(Lanes a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

PACELINE_INLINE float largest(Lanes a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

PACELINE_INLINE void transpose_8(__m256 (&a)[8]) {
    __m256 t[8], u[8];
    PACELINE_UNROLL
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    PACELINE_UNROLL
    for (int i = 0; i < 2; ++i) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    PACELINE_UNROLL
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
        a[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
    }
}

PACELINE_INLINE void transpose(Lanes (&a)[16]) {
    __m256 quarter[4][8]; // rows 0-7 and 8-15 of the low halves, then of the high halves
    PACELINE_UNROLL
    for (int i = 0; i < 8; ++i) {
        quarter[0][i] = a[i].low;
        quarter[1][i] = a[8 + i].low;
        quarter[2][i] = a[i].high;
        quarter[3][i] = a[8 + i].high;
    }
    PACELINE_UNROLL
    for (int q = 0; q < 4; ++q)
        transpose_8(quarter[q]);
    PACELINE_UNROLL
    for (int i = 0; i < 8; ++i) {
        a[i] = {quarter[0][i], quarter[1][i]};
        a[8 + i] = {quarter[2][i], quarter[3][i]};
    }
}

// a[j] lane i = from[i * stride + j]
PACELINE_INLINE void load_transposed(const float *from, std::size_t stride, Lanes (&a)[16]) {
    PACELINE_UNROLL
    for (std::size_t i = 0; i < 16; ++i)
        a[i] = load(from + i * stride);
    transpose(a);
}

// Eight rows of 16 codes as words of four: lane i of words[q] has the codes 4q to 4q + 4 of row i.
PACELINE_INLINE void load_words(const std::int8_t *from, std::size_t stride, __m256i (&words)[4]) {
    __m256i r[4];
    PACELINE_UNROLL
    for (std::size_t i = 0; i < 4; ++i)
        r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(from + i * stride)),
                                       load_128(from + (i + 4) * stride), 1);
    const __m256i t0 = _mm256_unpacklo_epi32(r[0], r[1]), t1 = _mm256_unpackhi_epi32(r[0], r[1]);
    const __m256i t2 = _mm256_unpacklo_epi32(r[2], r[3]), t3 = _mm256_unpackhi_epi32(r[2], r[3]);
    words[0] = _mm256_unpacklo_epi64(t0, t2);
    words[1] = _mm256_unpackhi_epi64(t0, t2);
    words[2] = _mm256_unpacklo_epi64(t1, t3);
    words[3] = _mm256_unpackhi_epi64(t1, t3);
}

// The same for codes; shifts take the words apart.
PACELINE_INLINE void load_transposed(const std::int8_t *from, std::size_t stride, Lanes (&a)[16]) {
    __m256i low[4], high[4];
    load_words(from, stride, low);
    load_words(from + 8 * stride, stride, high);
    PACELINE_UNROLL
    for (int q = 0; q < 4; ++q) {
        const Ints words{low[q], high[q]};
        a[4 * q] = to_float(shift_right<24>(shift_left<24>(words)));
        a[4 * q + 1] = to_float(shift_right<24>(shift_left<16>(words)));
        a[4 * q + 2] = to_float(shift_right<24>(shift_left<8>(words)));
        a[4 * q + 3] = to_float(shift_right<24>(words));
    }
}

} // namespace
} // namespace paceline
