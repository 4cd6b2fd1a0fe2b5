// Microseconds of attention for T rows over P cached keys, medians.
//
//   python tests/native/build.py plain bench_attention && build/native/plain/bench_attention
//       [Q_HEADS KV_HEADS D THREADS CACHE SHAPE MOST_ROWS MOST_KEYS LAYERS LEVEL]
//
// CACHE: 0 float32, 1 float16, 2 int8. SHAPE: tree or chain. The calls go round LAYERS caches: with one layer
// a short cache stays in the processor's own, with several the keys come from memory, as in a model.
#include "attention.h"
#include "attention_cases.h"
#include "isa.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace {

using namespace paceline;
using namespace paceline::test;
using Clock = std::chrono::steady_clock;

// One more thread that waits in a loop, so that starting it costs next to nothing.
class Pair {
  public:
    Pair() : other_([this] { serve(); }) {}
    ~Pair() {
        round_ = ~std::size_t{0};
        other_.join();
    }
    Pool pool() { return {this, run}; }

  private:
    void serve() {
        for (std::size_t seen = 0, now; (now = round_.load()) != ~std::size_t{0};)
            if (now != seen) {
                seen = now;
                work();
                done_.store(now);
            }
    }
    void work() {
        for (std::size_t i; (i = next_.fetch_add(1)) < count_;)
            task_(user_, i);
    }
    static void run(void *context, void (*task)(void *, std::size_t), std::size_t count, void *user) {
        Pair &pair = *static_cast<Pair *>(context);
        pair.task_ = task;
        pair.user_ = user;
        pair.count_ = count;
        pair.next_ = 0;
        const std::size_t round = ++pair.round_;
        pair.work();
        while (pair.done_.load() != round) {
        }
    }
    std::atomic<std::size_t> round_{0}, done_{0}, next_{0};
    std::size_t count_ = 0;
    void (*task_)(void *, std::size_t) = nullptr;
    void *user_ = nullptr;
    std::thread other_;
};

// Several layers' caches, so that a layer's keys are not in the second-level cache from the call before.
struct Bench {
    Case shape;
    std::vector<Stored> k, v;
    std::vector<std::int64_t> positions;
    std::vector<float> out;
};

Bench make_bench(const Case &shape, std::size_t layers) {
    Bench b{shape, {}, {}, {}, {}};
    for (std::size_t i = 0; i < layers; ++i) {
        b.k.push_back(stored(shape, shape.k));
        b.v.push_back(stored(shape, shape.v));
    }
    for (auto *side : {&b.k, &b.v})
        for (Stored &s : *side)
            s.data = !s.single.empty() ? static_cast<const void *>(s.single.data())
                     : !s.half.empty() ? static_cast<const void *>(s.half.data())
                                       : static_cast<const void *>(s.codes.data());
    for (std::size_t t = 0; t < shape.rows; ++t)
        b.positions.push_back(shape.position(t));
    b.out.resize(shape.q_heads * shape.rows * shape.size);
    return b;
}

void run_layer(Bench &b, std::size_t layer, const Pool &pool) {
    const Case &c = b.shape;
    Attention call{};
    call.q_heads = c.q_heads;
    call.kv_heads = c.kv_heads;
    call.rows = c.rows;
    call.size = c.size;
    call.q = {c.q.data(), c.rows * c.size, c.size};
    call.k_new = {c.k.data() + c.past() * c.size, c.keys() * c.size, c.size};
    call.v_new = {c.v.data() + c.past() * c.size, c.keys() * c.size, c.size};
    call.cache_k = b.k[layer].data;
    call.cache_v = b.v[layer].data;
    call.k_scales = c.cache == Cache::int8 ? b.k[layer].scales.data() : nullptr;
    call.v_scales = c.cache == Cache::int8 ? b.v[layer].scales.data() : nullptr;
    call.cache_rows = c.past() + c.spare;
    call.past = c.past();
    call.cache = c.cache;
    call.parents = c.parents.data();
    call.width = c.width();
    call.positions = b.positions.data();
    call.scale = c.scale;
    call.out = b.out.data();
    call.out_head_stride = c.rows * c.size;
    call.out_row_stride = c.size;
    attend(call, pool);
}

Case shape_of(std::size_t q_heads, std::size_t kv_heads, std::size_t size, std::size_t rows, std::size_t past,
              Cache cache, bool tree) {
    Random random(1);
    Case c{};
    c.q_heads = q_heads;
    c.kv_heads = kv_heads;
    c.size = size;
    c.committed = past;
    c.rows = rows;
    c.spare = 64;
    c.cache = cache;
    c.scale = 0.125f;
    for (std::size_t t = 0; t < rows; ++t)
        c.parents.push_back(tree && t > 1 ? static_cast<std::int64_t>(t / 2)
                                          : static_cast<std::int64_t>(t) - 1);
    for (auto *numbers : {&c.q, &c.k, &c.v}) {
        numbers->resize((numbers == &c.q ? q_heads * rows : kv_heads * c.keys()) * size);
        for (float &x : *numbers)
            x = random.number();
    }
    return c;
}

// Median over at least 5 calls and about a tenth of a second.
double microseconds(Bench &b, const Pool &pool) {
    std::vector<double> times;
    const auto begin = Clock::now();
    run_layer(b, 0, pool);
    for (std::size_t i = 0; i < 5 || Clock::now() - begin < std::chrono::milliseconds(100); ++i) {
        const auto start = Clock::now();
        run_layer(b, i % b.k.size(), pool);
        times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                     times.end());
    return times[times.size() / 2];
}

} // namespace

int main(int count, char **arguments) {
    const auto number = [&](int i, std::size_t otherwise) {
        return count > i ? static_cast<std::size_t>(std::atoll(arguments[i])) : otherwise;
    };
    const std::size_t q_heads = number(1, 32), kv_heads = number(2, 8), size = number(3, 64),
                      threads = number(4, 1);
    const Cache cache = static_cast<Cache>(number(5, 0));
    for (const Level level : {Level::portable, Level::avx2, Level::avx512vnni, Level::neon, Level::i8mm})
        if (count > 10 && std::strcmp(arguments[10], name_of(level)) == 0 && !use(level))
            return 1;
    const bool tree = count <= 6 || std::strcmp(arguments[6], "tree") == 0;
    const std::size_t most = number(7, 64), deepest = number(8, 2048), layers = number(9, 0);
    std::printf("%s, %zu/%zu heads of %zu, %zu threads, cache %s, %s\n%8s", name_of(active()), q_heads,
                kv_heads, size, threads,
                cache == Cache::single ? "float32"
                : cache == Cache::half ? "float16"
                                       : "int8",
                tree ? "tree" : "chain", "P \\ T");
    const std::unique_ptr<Pair> pair(threads > 1 ? new Pair : nullptr);
    std::vector<std::size_t> rows;
    for (std::size_t t = 1; t <= most; t *= t == 1 ? 4 : 2)
        rows.push_back(t);
    for (const std::size_t t : rows)
        std::printf("%9zu", t);
    for (const std::size_t past :
         {std::size_t{128}, std::size_t{256}, std::size_t{2048}, std::size_t{8192}, std::size_t{32768}}) {
        if (past > deepest)
            break;
        std::printf("\n%8zu", past);
        for (const std::size_t t : rows) {
            Bench b = make_bench(shape_of(q_heads, kv_heads, size, t, past, cache, tree), layers != 0 ? layers
                                                                                          : past > 4096 ? 1
                                                                                                        : 4);
            std::printf("%9.0f", microseconds(b, pair ? pair->pool() : serial_pool()));
            std::fflush(stdout);
        }
    }
    std::printf("\n");
    return 0;
}
