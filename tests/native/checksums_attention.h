// Heads made ready and attention, over fuzzed trees and caches.
#pragma once
#include "attention.h"
#include "checksum.h"
#include "draws.h"
#include <cstring>
#include <vector>

namespace paceline {

// A tree over the `width` last columns: parents, depths, and the same as a mask of the last `rows` columns.
struct Tree {
    std::vector<std::int64_t> parents, depths;
    std::vector<std::uint8_t> mask;
};

inline Tree tree(Random &random, std::size_t rows, std::size_t width) {
    Tree made{std::vector<std::int64_t>(width), std::vector<std::int64_t>(width), {}};
    const std::size_t reach = random.chance(2) ? 1 : 4; // 1: a chain
    for (std::size_t i = 0; i < width; ++i) {
        const std::size_t back = 1 + random.below(reach);
        made.parents[i] = back > i ? -1 : static_cast<std::int64_t>(i - back);
        made.depths[i] = back > i ? 0 : made.depths[i - back] + 1;
    }
    made.mask.resize(rows * width);
    for (std::size_t t = 0; t < rows; ++t)
        for (std::int64_t at = static_cast<std::int64_t>(width - rows + t); at >= 0;
             at = made.parents[static_cast<std::size_t>(at)])
            made.mask[t * width + static_cast<std::size_t>(at)] = 1;
    return made;
}

// Cache rows of any precision; int8 with one scale per row.
struct Cached {
    std::vector<std::uint8_t> rows;
    std::vector<float> scales;
};

inline Cached cached(Random &random, Cache kind, std::size_t rows, std::size_t size) {
    Cached made;
    if (kind == Cache::single) {
        const std::vector<float> values = numbers(random, rows * size);
        made.rows.resize(values.size() * 4);
        std::memcpy(made.rows.data(), values.data(), made.rows.size());
    } else if (kind == Cache::half) {
        made.rows.resize(rows * size * 2);
        for (std::size_t i = 0; i < made.rows.size(); i += 2) {
            const std::uint16_t bits = half_bits(random);
            std::memcpy(&made.rows[i], &bits, 2);
        }
    } else {
        made.rows = bytes(random, rows * size);
        made.scales.resize(rows);
        for (float &scale : made.scales)
            scale = 0.01f + 0.01f * random.uniform();
    }
    return made;
}

inline void attention_case(std::size_t number) {
    Random random{number * 104729 + 2};
    const Cache kinds[] = {Cache::single, Cache::half, Cache::int8};
    const std::size_t sizes[] = {4, 8, 20, 32, 64, 80, 128};
    const Cache kind = kinds[random.below(3)];
    const std::size_t size = sizes[random.below(7)], kv_heads = 1 + random.below(3);
    const std::size_t q_heads = kv_heads * (1 + random.below(4)), rows = 1 + random.below(12);
    const std::size_t waiting = random.chance(2) ? 0 : random.below(6), width = rows + waiting;
    const std::size_t committed = random.chance(5) ? 0 : random.below(300), past = committed + waiting;
    const std::size_t slots = past + random.below(20) + 1;
    const Tree made = tree(random, rows, width);

    const std::vector<float> qkv = numbers(random, rows * (q_heads + 2 * kv_heads) * size);
    const std::size_t rotary = random.chance(2) ? size : size / 2;
    const std::vector<float> cos = numbers(random, rows * rotary / 2),
                             sin = numbers(random, rows * rotary / 2);
    const std::vector<float> q_norm = numbers(random, size), k_norm = numbers(random, size);
    std::vector<float> q(q_heads * rows * size), new_k(kv_heads * rows * size), new_v(new_k.size());
    Heads heads{};
    heads.qkv = qkv.data();
    heads.q_heads = q_heads;
    heads.kv_heads = kv_heads;
    heads.rows = rows;
    heads.size = size;
    heads.cos = cos.data();
    heads.sin = sin.data();
    heads.rotary = rotary;
    heads.interleaved = random.chance(2);
    heads.q_norm = random.chance(2) ? q_norm.data() : nullptr;
    heads.k_norm = random.chance(2) ? k_norm.data() : nullptr;
    heads.epsilon = 1e-6f;
    heads.cache = kind;
    heads.q = q.data();
    heads.new_k = new_k.data();
    heads.new_v = new_v.data();
    prepare_heads(heads, serial_pool());

    const Cached keys = cached(random, kind, kv_heads * slots, size);
    const Cached values = cached(random, kind, kv_heads * slots, size);
    const std::vector<float> sinks = numbers(random, q_heads);
    std::vector<std::int64_t> positions(rows);
    for (std::size_t t = 0; t < rows; ++t)
        positions[t] = static_cast<std::int64_t>(committed) + made.depths[waiting + t];
    std::vector<float> out(rows * q_heads * size);

    Attention call{};
    call.q_heads = q_heads;
    call.kv_heads = kv_heads;
    call.rows = rows;
    call.size = size;
    call.q = {q.data(), rows * size, size};
    call.k_new = {new_k.data(), rows * size, size};
    call.v_new = {new_v.data(), rows * size, size};
    call.cache_k = keys.rows.data();
    call.cache_v = values.rows.data();
    call.k_scales = kind == Cache::int8 ? keys.scales.data() : nullptr;
    call.v_scales = kind == Cache::int8 ? values.scales.data() : nullptr;
    call.cache_rows = slots;
    call.past = past;
    call.cache = kind;
    if (random.chance(2))
        call.mask = made.mask.data();
    else
        call.parents = made.parents.data();
    call.width = width;
    call.positions = positions.data();
    call.sinks = random.chance(3) ? sinks.data() : nullptr;
    call.scale = random.chance(4) ? 3.0f : 0.125f;
    call.softcap = random.chance(3) ? 5.0f : 0.0f;
    call.window = random.chance(3) ? static_cast<std::int64_t>(width + random.below(200)) : 0;
    call.out = out.data();
    call.out_head_stride = size;
    call.out_row_stride = q_heads * size;
    attend(call, serial_pool());

    Checksum sum;
    sum.add(q);
    sum.add(new_k);
    sum.add(new_v);
    sum.add(out);
    sum.print("attention", number);
}

} // namespace paceline
