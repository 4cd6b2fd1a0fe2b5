// Attention from new rows to a read-only cache and to each other, as a tree; see
// runtime/ops/tree_attention.py.
#pragma once
#include "pool.h"
#include <cstddef>
#include <cstdint>

namespace paceline {

enum class Cache { single, half, int8 };

// Rows in float32, `head_stride` and `row_stride` in numbers.
struct Rows {
    const float *data;
    std::size_t head_stride, row_stride;
};

struct Attention {
    std::size_t q_heads, kv_heads, rows, size; // Hq, Hkv, T, D
    Rows q, k_new, v_new;
    const void *cache_k, *cache_v;    // [Hkv, cache_rows, D]
    const float *k_scales, *v_scales; // [Hkv, cache_rows], for int8, else null
    std::size_t cache_rows, past;     // S and past_len
    Cache cache;
    const std::uint8_t *mask;      // [T, width] or null
    const std::int64_t *parents;   // [width] or null
    std::size_t width;             // W >= T
    const std::int64_t *positions; // [T]
    const float *sinks;            // [Hq] or null: a logit that takes weight and gives nothing
    float scale, softcap;          // softcap 0 = none
    std::int64_t window;           // 0 = none
    float *out;                    // head h of row t at out + h * out_head_stride + t * out_row_stride
    std::size_t out_head_stride, out_row_stride;
};

void attend(const Attention &call, const Pool &pool);

// Heads of one projection made ready: optional RMS norm of each head, rotation by position, rounding as the
// cache rounds.
struct Heads {
    const float *qkv; // [T, (Hq + 2 Hkv) * D]
    std::size_t q_heads, kv_heads, rows, size;
    const float *cos, *sin; // [T, rotary / 2]
    std::size_t rotary;     // numbers of each head that are rotated
    bool interleaved;
    const float *q_norm, *k_norm; // [D] or null
    float epsilon;
    Cache cache;
    float *q;     // [Hq, T, D]
    float *new_k; // [Hkv, T, D]
    float *new_v; // [Hkv, T, D]
};

void prepare_heads(const Heads &call, const Pool &pool);

} // namespace paceline
