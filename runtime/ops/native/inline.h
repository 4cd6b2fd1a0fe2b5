// What the compilers call "always inline", "unroll" and "prefetch"; all for speed only.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#define PACELINE_INLINE __forceinline
#define PACELINE_UNROLL
#define PACELINE_ROLLED
#elif defined(__clang__)
#define PACELINE_INLINE __attribute__((always_inline)) inline
#define PACELINE_UNROLL _Pragma("unroll")
#define PACELINE_ROLLED _Pragma("nounroll")
#else
#define PACELINE_INLINE __attribute__((always_inline)) inline
#define PACELINE_UNROLL _Pragma("GCC unroll 32")
#define PACELINE_ROLLED _Pragma("GCC unroll 1")
#endif

#if defined(__GNUC__)
#define PACELINE_PREFETCH(address) __builtin_prefetch(address, 0, 2) // into the second-level cache
#else
#define PACELINE_PREFETCH(address) static_cast<void>(address)
#endif
