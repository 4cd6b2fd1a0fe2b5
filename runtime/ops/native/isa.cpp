// What this processor and its operating system can run, and which of it is in use.
#include "isa.h"
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#if defined(__x86_64__) || defined(_M_X64)
#define PACELINE_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_M_ARM64)
#include <windows.h>
#endif

namespace paceline {
namespace {

#if defined(PACELINE_X86)

struct Registers {
    std::uint32_t a, b, c, d;
};

Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
    Registers r{};
#if defined(_MSC_VER)
    int values[4];
    __cpuidex(values, static_cast<int>(leaf), static_cast<int>(subleaf));
    r = {std::uint32_t(values[0]), std::uint32_t(values[1]), std::uint32_t(values[2]),
         std::uint32_t(values[3])};
#else
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
#endif
    return r;
}

// The register states that the operating system saves when it switches threads.
std::uint64_t saved_states() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    std::uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
#endif
}

bool bit(std::uint32_t word, int index) { return ((word >> index) & 1u) != 0; }

struct Machine {
    bool avx2 = false, avxvnni = false, avx512vnni = false;
};

Machine detect() {
    Machine machine;
    const Registers basic = cpuid(1, 0);
    const bool saves = bit(basic.c, 27);
    if (!saves || (saved_states() & 0x6) != 0x6)
        return machine;
    const Registers more = cpuid(7, 0), newer = cpuid(7, 1);
    machine.avx2 = bit(more.b, 5) && bit(basic.c, 12) && bit(basic.c, 29); // AVX2, FMA, F16C
    machine.avxvnni = machine.avx2 && more.a >= 1 && bit(newer.a, 4);
    const bool wide =
        bit(more.b, 16) && bit(more.b, 17) && bit(more.b, 30) && bit(more.b, 31); // F, DQ, BW, VL
    machine.avx512vnni = machine.avx2 && wide && bit(more.c, 11) && (saved_states() & 0xe6) == 0xe6;
    return machine;
}

#elif defined(__aarch64__) || defined(_M_ARM64)

struct Machine {
    bool dot = false, i8mm = false;
};

#if defined(__APPLE__)
bool feature(const char *name) {
    int value = 0;
    std::size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

Machine detect() {
#if defined(__linux__)
    constexpr unsigned long dot_bit = 1ul << 20, i8mm_bit = 1ul << 13; // HWCAP_ASIMDDP, HWCAP2_I8MM
    return {(getauxval(AT_HWCAP) & dot_bit) != 0, (getauxval(AT_HWCAP2) & i8mm_bit) != 0};
#elif defined(__APPLE__)
    return {feature("hw.optional.arm.FEAT_DotProd"), feature("hw.optional.arm.FEAT_I8MM")};
#elif defined(_M_ARM64)
    return {IsProcessorFeaturePresent(43) != 0,
            IsProcessorFeaturePresent(66) != 0}; // PF_ARM_V82_DP, V82_I8MM
#else
    return {};
#endif
}

#else

struct Machine {};

#endif

const Machine &machine() {
    static const Machine found =
#if defined(PACELINE_X86) || defined(__aarch64__) || defined(_M_ARM64)
        detect();
#else
        {};
#endif
    return found;
}

Level best() {
    for (const Level level : {Level::avx512vnni, Level::avxvnni, Level::avx2, Level::i8mm, Level::neon})
        if (supported(level))
            return level;
    return Level::portable;
}

std::atomic<Level> &chosen() {
    static std::atomic<Level> level{best()};
    return level;
}

} // namespace

const char *name_of(Level level) {
    switch (level) {
    case Level::avx2:
        return "avx2";
    case Level::avxvnni:
        return "avxvnni";
    case Level::avx512vnni:
        return "avx512vnni";
    case Level::neon:
        return "neon";
    case Level::i8mm:
        return "i8mm";
    case Level::portable:
        break;
    }
    return "portable";
}

bool supported(Level level) {
    switch (level) {
    case Level::portable:
        return true;
#if defined(PACELINE_X86)
    case Level::avx2:
        return machine().avx2;
    case Level::avxvnni:
#if defined(PACELINE_NO_AVXVNNI) // the compiler does not know it
        return false;
#else
        return machine().avxvnni;
#endif
    case Level::avx512vnni:
        return machine().avx512vnni;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Level::neon:
        return machine().dot;
    case Level::i8mm:
        return machine().dot && machine().i8mm;
#endif
    default:
        return false;
    }
}

Level active() { return chosen().load(std::memory_order_relaxed); }

bool use(Level level) {
    if (!supported(level))
        return false;
    chosen().store(level, std::memory_order_relaxed);
    return true;
}

} // namespace paceline
