// What attention.cpp works out once for a call, and what the unit of each instruction set then does with it.
#pragma once
#include "attention.h"
#include <cstddef>
#include <cstdint>

namespace paceline {

constexpr std::size_t block_keys =
    64; // a softmax step; blocks start at multiples of it in a row's own sequence of keys

// A task is one key head and `chunk_rows` of the rows that read it: T * groups of them, row r being query
// head r % groups of its group at new row r / groups. Sizes are in floats, `padded` is D rounded up to 16.
//
// The keys of a row are, in this order: the `committed` cache rows, then the columns of the tree mask that it
// names. Key i of the call is cache row i below `past`, else new row i - past, so that column c is key
// committed + c. With a `chain` (every row names all columns up to its own) the keys of a row are the keys of
// the call, 0 to past + t.
struct AttentionPlan {
    Attention call;
    std::size_t groups, padded, committed, chunk_rows, chunks;
    bool chain;
    const std::uint32_t *columns,
        *column_ends;  // if no chain: row t names columns[column_ends[t] .. column_ends[t + 1])
    Rows new_k, new_v; // as the cache holds them: codes, if it holds codes
    const float *new_k_scales, *new_v_scales; // [Hkv, T] or null
    std::size_t tail_blocks; // of the keys from the last multiple of 64 committed ones on; 0 with a chain
    std::size_t scratch;     // floats that a task needs
};

struct AttentionKernels {
    // `scratch` starts at a multiple of 64 bytes.
    void (*attend)(const AttentionPlan &plan, std::size_t task, float *scratch);

    // One row as the cache holds it: rounded, or codes and their scale. `to` has D numbers.
    void (*as_cached)(Cache cache, const float *from, std::size_t size, float *to, float *scale);

    // All heads of new row t.
    void (*prepare)(const Heads &heads, std::size_t t, float *scratch);
};

extern const AttentionKernels attention_portable, attention_avx2, attention_avx512, attention_neon;

} // namespace paceline
