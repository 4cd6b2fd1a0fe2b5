// Which instruction set the kernels use: the best one of this machine unless a lower one is asked for.
#pragma once

namespace paceline {

enum class Level { portable, avx2, avxvnni, avx512vnni, neon, i8mm };

const char *name_of(Level level);

// Compiled into this library and supported by this machine and its operating system.
bool supported(Level level);

Level active();

// Process-wide; for tests and for comparisons. False where the level is not supported.
bool use(Level level);

} // namespace paceline
