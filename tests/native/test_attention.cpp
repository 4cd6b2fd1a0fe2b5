// Attention against float64, against itself with the rows committed, and across instruction sets and threads.
//   python tests/native/build.py plain test_attention --run [-- CASES SEED]
#include "attention.h"
#include "attention_cases.h"
#include "head_cases.h"
#include "isa.h"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

namespace {

using namespace paceline;
using namespace paceline::test;

int failures = 0;

void expect(bool good, const char *what, const Case &c) {
    if (good)
        return;
    ++failures;
    std::printf("FAILED: %s\n  %s\n", what, describe(c).c_str());
}

std::vector<Level> levels() {
    std::vector<Level> found;
    for (const Level level : {Level::portable, Level::avx2, Level::avx512vnni, Level::neon, Level::i8mm})
        if (supported(level))
            found.push_back(level);
    return found;
}

bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Row t of every head, [Hq, D].
std::vector<float> row_of(const Case &c, const std::vector<float> &out, std::size_t t) {
    std::vector<float> row;
    for (std::size_t h = 0; h < c.q_heads; ++h) {
        const auto first = out.begin() + static_cast<std::ptrdiff_t>((h * c.rows + t) * c.size);
        row.insert(row.end(), first, first + static_cast<std::ptrdiff_t>(c.size));
    }
    return row;
}

// The Euclidean length of the longest row.
double longest(const std::vector<float> &rows, std::size_t size) {
    double most = 0;
    for (std::size_t i = 0; i < rows.size(); i += size) {
        double squares = 0;
        for (std::size_t d = 0; d < size; ++d)
            squares += static_cast<double>(rows[i + d]) * static_cast<double>(rows[i + d]);
        most = std::max(most, std::sqrt(squares));
    }
    return most;
}

void agrees_with_float64(const Case &c, const std::vector<float> &out) {
    const std::vector<double> wanted = reference(c);
    double worst = 0;
    for (std::size_t i = 0; i < out.size(); ++i)
        worst = std::max(worst, std::isfinite(out[i]) ? std::abs(out[i] - wanted[i]) : 1e9);
    // A score's rounding error is a share of the lengths of its two rows, and a weight's error is that of its
    // score.
    const double score = static_cast<double>(c.scale) * longest(c.q, c.size) * longest(c.k, c.size);
    expect(worst < 4e-7 * longest(c.v, 1) * (2 + score), "differs from float64", c);
}

// Every row again, alone, with its path in the cache.
void is_the_same_committed(const Case &c, const std::vector<float> &out) {
    for (std::size_t t = 0; t < c.rows; ++t) {
        const Case alone = committed_path(c, t);
        expect(same_bits(attended(alone, Form::parents, serial_pool()), row_of(c, out, t)),
               "a row has other bits when its path is committed", c);
    }
}

void is_the_same_with_fewer_rows(const Case &c, const std::vector<float> &out, Random &random) {
    const std::size_t rows = 1 + random.below(c.rows);
    const std::vector<float> some = attended(first_rows(c, rows), Form::parents, serial_pool());
    for (std::size_t t = 0; t < rows; ++t)
        expect(same_bits(row_of(first_rows(c, rows), some, t), row_of(c, out, t)),
               "bits depend on later rows", c);
}

// What no row may look at: cache rows from past_len on, and a new row that nobody names.
void ignores_what_is_hidden(const Case &c, const std::vector<float> &out) {
    Case dirty = c;
    const std::size_t last = c.rows - 1;
    dirty.poison_unused = true;
    for (std::size_t h = 0; h < c.kv_heads; ++h)
        for (std::size_t d = 0; d < c.size; ++d)
            dirty.k[(h * c.keys() + c.keys() - 1) * c.size + d] =
                dirty.v[(h * c.keys() + c.keys() - 1) * c.size + d] = NAN;
    const std::vector<float> again = attended(dirty, Form::parents, serial_pool());
    for (std::size_t t = 0; t < last; ++t)
        expect(same_bits(row_of(c, out, t), row_of(c, again, t)), "a row reads what it may not see", c);
}

// Negative controls: what must change the bits does change them, so the comparisons above can fail.
void notices_a_change(const Case &c, const std::vector<float> &out, int &compared, int &noticed) {
    const std::size_t t = c.rows - 1;
    Case alone = committed_path(c, t);
    if (alone.committed < 2)
        return;
    const std::size_t a = alone.committed - 1, b = a - 1; // the order of its last two keys
    for (std::size_t h = 0; h < c.kv_heads; ++h)
        for (std::size_t d = 0; d < c.size; ++d) {
            std::swap(alone.k[(h * alone.keys() + a) * c.size + d],
                      alone.k[(h * alone.keys() + b) * c.size + d]);
            std::swap(alone.v[(h * alone.keys() + a) * c.size + d],
                      alone.v[(h * alone.keys() + b) * c.size + d]);
        }
    ++compared;
    noticed += same_bits(attended(alone, Form::parents, serial_pool()), row_of(c, out, t)) ? 0 : 1;
}

void check(const Case &c, Random &random, int &compared, int &noticed) {
    use(levels().back());
    const std::vector<float> out = attended(c, Form::parents, serial_pool());
    agrees_with_float64(c, out);
    is_the_same_committed(c, out);
    is_the_same_with_fewer_rows(c, out, random);
    ignores_what_is_hidden(c, out);
    notices_a_change(c, out, compared, noticed);
    expect(same_bits(out, attended(c, Form::mask, serial_pool())), "a mask gives other bits than parents", c);
    Threads threads(1 + random.below(4));
    expect(same_bits(out, attended(c, Form::parents, threads.pool())), "threads change bits", c);
    for (const Level level : levels()) {
        use(level);
        expect(same_bits(out, attended(c, Form::parents, serial_pool())), name_of(level), c);
    }
    use(levels().back());
}

// Positions and windows come from a graph: whatever they are, nothing overflows and all levels agree.
void takes_any_positions(Case c, Random &random) {
    constexpr std::int64_t top = std::numeric_limits<std::int64_t>::max();
    const std::int64_t ends[] = {-top - 1, -top, -1, 0, 1, 64, top / 2, top - 1, top};
    std::vector<std::int64_t> positions;
    for (std::size_t t = 0; t < c.rows; ++t)
        positions.push_back(ends[random.below(9)]);
    c.window = ends[3 + random.below(6)];
    use(levels().back());
    const std::vector<float> out = attended(c, Form::parents, serial_pool(), positions);
    for (const Level level : levels()) {
        use(level);
        expect(same_bits(out, attended(c, Form::parents, serial_pool(), positions)), "strange positions", c);
    }
    use(levels().back());
}

void check_heads(Random &random) {
    const HeadCase c = random_heads(random);
    use(levels().back());
    const Prepared out = prepared(c, serial_pool());
    if (head_error(c, out) > 1e-5) {
        ++failures;
        std::printf("FAILED: prepare_heads differs from float64 by %g\n", head_error(c, out));
    }
    Threads threads(3);
    for (const Level level : levels()) {
        use(level);
        const Prepared again = prepared(c, threads.pool());
        if (!same_bits(out.q, again.q) || !same_bits(out.k, again.k) || !same_bits(out.v, again.v)) {
            ++failures;
            std::printf("FAILED: prepare_heads has other bits on %s\n", name_of(level));
        }
    }
}

} // namespace

int main(int count, char **arguments) {
    const int cases = count > 1 ? std::atoi(arguments[1]) : 300;
    Random random(count > 2 ? static_cast<std::uint64_t>(std::atoll(arguments[2])) : 1);
    int compared = 0, noticed = 0;
    for (int i = 0; i < cases && failures < 10; ++i) {
        check(random_case(random), random, compared, noticed);
        takes_any_positions(random_case(random), random);
        check_heads(random);
    }
    if (noticed * 10 < compared * 8) {
        ++failures;
        std::printf("FAILED: only %d of %d swapped keys changed the bits\n", noticed, compared);
    }
    std::printf("%d cases, %zu instruction sets, %d of %d controls noticed, %d failures\n", cases,
                levels().size(), noticed, compared, failures);
    return failures == 0 ? 0 : 1;
}
