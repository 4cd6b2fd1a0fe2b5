// What the compilers call "always inline", "unroll" and "prefetch"; all for speed only.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#define PACELINE_INLINE __forceinline
#define PACELINE_UNROLL
#elif defined(__clang__)
#define PACELINE_INLINE __attribute__((always_inline)) inline
#define PACELINE_UNROLL _Pragma("unroll")
#else
#define PACELINE_INLINE __attribute__((always_inline)) inline
#define PACELINE_UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(__GNUC__)
#define PACELINE_PREFETCH(address) __builtin_prefetch(address, 0, 2) // into the second-level cache
#else
#define PACELINE_PREFETCH(address) static_cast<void>(address)
#endif
