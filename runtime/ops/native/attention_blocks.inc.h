// Keys and values of a block, from the cache or from the new rows, in the form in which the tiles want them.
#pragma once

namespace paceline {
namespace {

PACELINE_INLINE Lanes load_as(const float *from) { return load(from); }
PACELINE_INLINE Lanes load_as(const std::uint16_t *from) { return load_half(from); }
PACELINE_INLINE Lanes load_as(const std::int8_t *from) { return load_int8(from); }

template <class Number> PACELINE_INLINE Lanes load_as(const Number *from, std::size_t count) {
    if (count >= lane_count)
        return load_as(from);
    Number some[lane_count] = {};
    std::memcpy(some, from, count * sizeof(Number));
    return load_as(some);
}

// The keys, or the values, of one head.
template <class Number> struct Side {
    const Number *cached;
    const float *fresh;
    std::size_t fresh_stride;
    const float *cached_scales, *fresh_scales; // null unless the cache is int8
    std::size_t size, padded, past, end;

    // Numbers d to d + 16 of key i, with zeros after the last number and after the last key.
    Lanes part(std::size_t i, std::size_t d) const {
        const std::size_t left = size - d;
        if (i < past)
            return load_as(cached + i * size + d, left);
        return i < end ? load_as(fresh + (i - past) * fresh_stride + d, left) : zero();
    }

    float scale(std::size_t i) const {
        return i < past ? cached_scales[i] : i < end ? fresh_scales[i - past] : 0.0f;
    }
};

template <class Number> struct Head {
    Side<Number> k, v;
};

template <class Number> Head<Number> head_of(const AttentionPlan &plan, std::size_t head) {
    const Attention &call = plan.call;
    const std::size_t first = head * call.cache_rows;
    const auto side = [&](const void *cache, const float *scales, const Rows &fresh,
                          const float *fresh_scales) {
        Side<Number> s{};
        s.cached = static_cast<const Number *>(cache) + first * call.size;
        s.fresh = fresh.data + head * fresh.head_stride;
        s.fresh_stride = fresh.row_stride;
        s.cached_scales = scales == nullptr ? nullptr : scales + first;
        s.fresh_scales = scales == nullptr ? nullptr : fresh_scales + head * call.rows;
        s.size = call.size;
        s.padded = plan.padded;
        s.past = call.past;
        s.end = call.past + call.rows;
        return s;
    };
    return {side(call.cache_k, call.k_scales, plan.new_k, plan.new_k_scales),
            side(call.cache_v, call.v_scales, plan.new_v, plan.new_v_scales)};
}

template <class Number>
PACELINE_INLINE void load_transposed(const Number *from, std::size_t stride, Lanes (&a)[16]) {
    PACELINE_UNROLL
    for (std::size_t i = 0; i < lane_count; ++i)
        a[i] = load_as(from + i * stride);
    transpose(a);
}

// Asks for one line of the 16 rows from `i` on: line j of those that belong to their numbers d to d + 16. A
// block is read in columns, which no hardware prefetcher follows; asking line by line, between the sums,
// keeps memory busy.
template <class Number>
PACELINE_INLINE void prefetch_line(const Side<Number> &side, std::size_t i, std::size_t d, std::size_t j) {
    if (j < 4 * sizeof(Number) && i + lane_count <= side.past)
        PACELINE_PREFETCH(reinterpret_cast<const char *>(side.cached + i * side.size + d * lane_count) +
                          64 * j);
}

// to[d, 64] = the 64 keys from `first` on, transposed, so that a score is a chain of fused steps over d.
template <class Number> void transposed_block(const Head<Number> &head, std::size_t first, float *to) {
    const Side<Number> &k = head.k;
    for (std::size_t i = 0; i < block_keys; i += lane_count) {
        const bool plain = first + i + lane_count <= k.past;
        for (std::size_t d = 0; d < k.size; d += lane_count) {
            Lanes a[lane_count];
            if (plain && d + lane_count <= k.size) {
                load_transposed(k.cached + (first + i) * k.size + d, k.size, a);
                PACELINE_UNROLL
                for (std::size_t j = 0; j < lane_count; ++j) {
                    prefetch_line(k, first + i + block_keys, d, j);
                    prefetch_line(head.v, first + i, d, j);
                }
            } else {
                for (std::size_t j = 0; j < lane_count; ++j)
                    a[j] = k.part(first + i + j, d);
                if (first + i < k.end)
                    transpose(a);
            }
            PACELINE_UNROLL
            for (std::size_t j = 0; j < lane_count; ++j)
                store(to + (d + j) * block_keys + i, a[j]);
        }
    }
}

// to[count, padded] = rows from `first` on.
template <class Number>
void copied_rows(const Side<Number> &v, std::size_t first, std::size_t count, float *to) {
    if (first + count <= v.past && v.size == v.padded) {
        const Number *from = v.cached + first * v.size;
        for (std::size_t d = 0; d < count * v.size; d += lane_count)
            store(to + d, load_as(from + d));
        return;
    }
    for (std::size_t i = 0; i < count; ++i)
        for (std::size_t d = 0; d < v.size; d += lane_count)
            store(to + i * v.padded + d, v.part(first + i, d));
}

// Rows of a whole block: where they are, if they can be read there, else a copy.
PACELINE_INLINE const float *block_rows(const Side<float> &v, std::size_t first, float *copy) {
    if (first + block_keys <= v.past && v.size == v.padded)
        return v.cached + first * v.size;
    copied_rows(v, first, block_keys, copy);
    return copy;
}
template <class Number>
PACELINE_INLINE const float *block_rows(const Side<Number> &v, std::size_t first, float *copy) {
    copied_rows(v, first, block_keys, copy);
    return copy;
}

// The scales of `count` rows from `first` on, or null if the cache has none.
template <class Number>
const float *copied_scales(const Side<Number> &side, std::size_t first, std::size_t count, float *to) {
    if (side.cached_scales == nullptr)
        return nullptr;
    if (first + count <= side.past)
        std::memcpy(to, side.cached_scales + first, count * sizeof(float));
    else
        for (std::size_t i = 0; i < count; ++i)
            to[i] = side.scale(first + i);
    return to;
}

} // namespace
} // namespace paceline
