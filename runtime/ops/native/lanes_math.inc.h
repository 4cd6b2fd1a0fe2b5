// exp, tanh and erf over Lanes, with the same bits on every instruction set: only fused steps in a fixed
// order. Include after one lanes_*.h. The polynomials are minimax fits of this project. NaN gives NaN.
#pragma once

namespace paceline {
namespace {

// Relative error below 1.2e-7. Results under the smallest normal number are 0, above the largest one
// infinity.
PACELINE_INLINE Lanes exp(Lanes x) {
    const Lanes rounder = set1(12582912.0f); // 1.5 * 2^23: adding it rounds to a whole number
    const Lanes inside = min(set1(89.0f), max(set1(-88.0f), x));
    const Lanes n = sub(fma(inside, set1(0x1.715476p+0f), rounder), rounder);
    const Lanes r = fnma(n, set1(0x1.7f7d1cp-20f), fnma(n, set1(0x1.62e4p-1f), inside)); // x - n log 2
    Lanes p = set1(0x1.6a2344p-10f);
    p = fma(p, r, set1(0x1.123a6ap-7f));
    p = fma(p, r, set1(0x1.5558f4p-5f));
    p = fma(p, r, set1(0x1.555490p-3f));
    p = fma(p, r, set1(0x1.fffffcp-2f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    return select(less(x, set1(-0x1.5d589ep+6f)), zero(), times_power_of_two(p, n));
}

// Absolute error below 1.2e-7, relative below 2.5e-7.
PACELINE_INLINE Lanes tanh(Lanes x) {
    const Lanes size = abs(x), square = mul(x, x);
    Lanes p = set1(-0x1.76ac44p-8f);
    p = fma(p, square, set1(0x1.5256e2p-6f));
    p = fma(p, square, set1(-0x1.b8444ap-5f));
    p = fma(p, square, set1(0x1.110768p-3f));
    p = fma(p, square, set1(-0x1.555534p-2f));
    const Lanes near = fma(mul(p, square), x, x);
    const Lanes power = exp(mul(min(set1(10.0f), size), set1(2.0f)));
    const Lanes far = sub(set1(1.0f), div(set1(2.0f), add(power, set1(1.0f))));
    return select(less(size, set1(0.625f)), near, with_sign(far, x));
}

// Absolute error below 1.2e-7, relative below 2.5e-7.
PACELINE_INLINE Lanes erf(Lanes x) {
    const Lanes size = abs(x), square = mul(x, x);
    Lanes p = set1(0x1.496a1ap-14f);
    p = fma(p, square, set1(-0x1.a3f6f6p-11f));
    p = fma(p, square, set1(0x1.5405b0p-8f));
    p = fma(p, square, set1(-0x1.b7f90cp-6f));
    p = fma(p, square, set1(0x1.ce2cf8p-4f));
    p = fma(p, square, set1(-0x1.81273ep-2f));
    p = fma(p, square, set1(0x1.20dd74p+0f));
    const Lanes near = mul(p, x);
    const Lanes a = min(set1(4.0f), size); // -log(1 - erf(a)), a from 1 to 4
    Lanes g = set1(0x1.6c05cep-16f);
    g = fma(g, a, set1(-0x1.ceea5ap-12f));
    g = fma(g, a, set1(0x1.1398ccp-8f));
    g = fma(g, a, set1(-0x1.9d0bb6p-6f));
    g = fma(g, a, set1(0x1.bc18c4p-4f));
    g = fma(g, a, set1(0x1.4434f2p-1f));
    g = fma(g, a, set1(0x1.212c2cp+0f));
    g = fma(g, a, set1(-0x1.8b3c4ep-13f));
    const Lanes far = sub(set1(1.0f), exp(neg(g)));
    return select(less(size, set1(1.0f)), near, with_sign(far, x));
}

} // namespace
} // namespace paceline
