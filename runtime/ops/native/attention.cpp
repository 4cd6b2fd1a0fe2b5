// The work that attention does once for a call: which columns a row names, new rows as the cache holds them,
// tasks.
#include "attention.h"
#include "attention_plan.h"
#include "isa.h"
#include "matmul_scratch.h"
#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

namespace paceline {
namespace {

constexpr std::size_t chunk_limit = 96; // rows that keep their sums in the second-level cache
constexpr std::size_t wanted_tasks = 8; // few key heads are split further, if there are enough rows
constexpr std::size_t smallest_chunk = 6;
constexpr std::size_t serial_work =
    1 << 18; // fused steps below which waking other threads costs more than it gives

const AttentionKernels &kernels() {
    switch (active()) {
#if defined(__x86_64__) || defined(_M_X64)
    case Level::avx512vnni:
        return attention_avx512;
    case Level::avxvnni:
    case Level::avx2:
        return attention_avx2;
#elif defined(__aarch64__) || defined(_M_ARM64)
    case Level::neon:
    case Level::i8mm:
        return attention_neon;
#endif
    default:
        return attention_portable;
    }
}

// Runs `task(i, scratch)` for each i; memory that is missing on another thread is reported on this one.
template <class Task>
void run_tasks(const Pool &pool, std::size_t count, std::size_t floats, const Task &task) {
    std::atomic<bool> starved{false};
    parallel(pool, count, [&](std::size_t i) {
        thread_local Scratch scratch;
        float *memory = nullptr;
        try {
            memory = reinterpret_cast<float *>(scratch.reserve(floats * sizeof(float)));
        } catch (const std::bad_alloc &) {
            starved = true;
            return;
        }
        task(i, memory);
    });
    if (starved)
        throw std::bad_alloc();
}

bool names(const Attention &call, std::size_t t, std::size_t column) {
    return call.mask[t * call.width + column] != 0;
}

// Whether every row names all columns up to its own and no later one.
bool is_chain(const Attention &call) {
    const std::size_t waiting = call.width - call.rows;
    if (call.parents != nullptr) {
        for (std::size_t c = 0; c < call.width; ++c)
            if (call.parents[c] != static_cast<std::int64_t>(c) - 1)
                return false;
        return true;
    }
    for (std::size_t t = 0; t < call.rows; ++t) {
        const std::uint8_t *row = call.mask + t * call.width, *own = row + waiting + t + 1;
        if (!std::all_of(row, own, [](std::uint8_t x) { return x != 0; }) ||
            !std::all_of(own, row + call.width, [](std::uint8_t x) { return x == 0; }))
            return false;
    }
    return true;
}

struct Columns {
    std::vector<std::uint32_t> names, ends;
};

void find_columns(const Attention &call, Columns &columns) {
    columns.names.clear();
    columns.ends.assign(1, 0);
    for (std::size_t t = 0; t < call.rows; ++t) {
        const std::size_t first = columns.names.size(), own = call.width - call.rows + t;
        if (call.parents != nullptr) {
            columns.names.push_back(static_cast<std::uint32_t>(own));
            for (std::int64_t c = call.parents[own]; c >= 0; c = call.parents[c])
                columns.names.push_back(static_cast<std::uint32_t>(c));
            std::reverse(columns.names.begin() + static_cast<std::ptrdiff_t>(first), columns.names.end());
        } else {
            for (std::size_t c = 0; c < call.width; ++c)
                if (names(call, t, c))
                    columns.names.push_back(static_cast<std::uint32_t>(c));
        }
        columns.ends.push_back(static_cast<std::uint32_t>(columns.names.size()));
    }
}

// The new rows as the cache holds them, where that is not what they are.
void round_new_rows(AttentionPlan &plan, const Pool &pool, Scratch &scratch) {
    const Attention &call = plan.call;
    plan.new_k = call.k_new;
    plan.new_v = call.v_new;
    if (call.cache == Cache::single)
        return;
    const std::size_t numbers = call.kv_heads * call.rows * call.size, count = call.kv_heads * call.rows;
    auto *memory = reinterpret_cast<float *>(scratch.reserve((2 * numbers + 2 * count) * sizeof(float)));
    float *const k = memory, *const v = k + numbers, *const k_scales = v + numbers,
                 *const v_scales = k_scales + count;
    const AttentionKernels &kernel = kernels();
    parallel(pool, call.kv_heads, [&](std::size_t head) {
        for (std::size_t t = 0; t < call.rows; ++t) {
            const std::size_t row = head * call.rows + t;
            kernel.as_cached(call.cache,
                             call.k_new.data + head * call.k_new.head_stride + t * call.k_new.row_stride,
                             call.size, k + row * call.size, k_scales + row);
            kernel.as_cached(call.cache,
                             call.v_new.data + head * call.v_new.head_stride + t * call.v_new.row_stride,
                             call.size, v + row * call.size, v_scales + row);
        }
    });
    plan.new_k = {k, call.rows * call.size, call.size};
    plan.new_v = {v, call.rows * call.size, call.size};
    plan.new_k_scales = k_scales;
    plan.new_v_scales = v_scales;
}

void place_chunks(AttentionPlan &plan) {
    const std::size_t rows = plan.call.rows * plan.groups, heads = plan.call.kv_heads;
    const std::size_t useful = std::max<std::size_t>(1, rows / smallest_chunk);
    const std::size_t wanted = std::min((wanted_tasks + heads - 1) / heads, useful);
    const std::size_t chunks = std::max(wanted, (rows + chunk_limit - 1) / chunk_limit);
    const std::size_t each = (rows + chunks - 1) / chunks;
    plan.chunk_rows = std::min(rows, (each + smallest_chunk - 1) / smallest_chunk * smallest_chunk);
    plan.chunks = (rows + plan.chunk_rows - 1) / plan.chunk_rows;
}

// What Chunk takes, each piece rounded up to 16 floats.
std::size_t scratch_floats(const AttentionPlan &plan) {
    const std::size_t tail = plan.tail_blocks * block_keys, pieces = 16;
    return 2 * plan.chunk_rows * (plan.padded + 1) + 2 * plan.padded * block_keys + 6 * block_keys +
           3 * block_keys + 2 * tail * plan.padded + 8 * tail + pieces * 16;
}

} // namespace

void attend(const Attention &call, const Pool &caller) {
    if (call.rows == 0 || call.kv_heads == 0)
        return;
    thread_local Scratch new_rows;
    thread_local Columns columns;
    AttentionPlan plan{};
    plan.call = call;
    plan.groups = call.q_heads / call.kv_heads;
    plan.padded = (call.size + 15) / 16 * 16;
    plan.committed = call.past - (call.width - call.rows);
    plan.chain = is_chain(call);
    if (!plan.chain) {
        find_columns(call, columns);
        plan.columns = columns.names.data();
        plan.column_ends = columns.ends.data();
        const std::size_t tail = call.past + call.rows - plan.committed / block_keys * block_keys;
        plan.tail_blocks = (tail + block_keys - 1) / block_keys;
    }
    const std::size_t work = call.q_heads * call.rows * (call.past + call.rows) * call.size;
    const Pool pool = work < serial_work ? serial_pool() : caller;
    round_new_rows(plan, pool, new_rows);
    place_chunks(plan);
    plan.scratch = scratch_floats(plan);
    const AttentionKernels &kernel = kernels();
    run_tasks(pool, call.kv_heads * plan.chunks, plan.scratch,
              [&](std::size_t task, float *scratch) { kernel.attend(plan, task, scratch); });
}

void prepare_heads(const Heads &call, const Pool &caller) {
    const std::size_t work = call.rows * (call.q_heads + 2 * call.kv_heads) * call.size;
    const AttentionKernels &kernel = kernels();
    run_tasks(work < serial_work ? serial_pool() : caller, call.rows, call.rotary + 16,
              [&](std::size_t t, float *scratch) { kernel.prepare(call, t, scratch); });
}

} // namespace paceline
