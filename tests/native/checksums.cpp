// Checksums of fuzzed results, equal on every instruction set and every machine: compare two runs line by
// line.
//     checksums                  prints the levels that this machine supports
//     checksums LEVEL [CASES]    prints three lines per case, computed with that level
#include "checksums_attention.h"
#include "checksums_matmul.h"
#include "checksums_vocabulary.h"
#include "isa.h"
#include <cstdlib>

namespace {

using namespace paceline;

const Level every_level[] = {Level::portable,   Level::avx2, Level::avxvnni,
                             Level::avx512vnni, Level::neon, Level::i8mm};

} // namespace

int main(int count, char **words) {
    if (count < 2) {
        for (Level level : every_level)
            if (supported(level))
                std::printf("%s\n", name_of(level));
        return 0;
    }
    for (Level level : every_level) {
        if (std::strcmp(name_of(level), words[1]) != 0)
            continue;
        if (!use(level)) {
            std::fprintf(stderr, "this machine does not support %s\n", words[1]);
            return 1;
        }
        const std::size_t cases = count > 2 ? std::strtoull(words[2], nullptr, 10) : 100;
        for (std::size_t number = 0; number < cases; ++number) {
            matmul_case(number);
            attention_case(number);
            vocabulary_case(number);
        }
        return 0;
    }
    std::fprintf(stderr, "there is no level %s\n", words[1]);
    return 1;
}
