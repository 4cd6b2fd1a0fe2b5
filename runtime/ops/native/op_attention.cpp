// TreeAttention and RotaryTreeAttention: see runtime/ops/tree_attention.py.
#include "attention.h"
#include "op.h"
#include <iterator>
#include <memory>

namespace paceline {
namespace {

using ort::Element;
using ort::Presence;

constexpr std::int64_t most_heads = 65536, largest_head = 65536; // sizes in bytes stay far from overflow

std::size_t size(std::int64_t dimension) { return static_cast<std::size_t>(dimension); }

// What both operators end with, from `cache_k` on, in this order.
enum Tail { cache_k, cache_v, past_len, tree_mask, positions, sinks, k_scales, v_scales };

constexpr Input cache_k_input{"cache_k", Element::any};
constexpr Input cache_v_input{"cache_v", Element::any};
constexpr Input past_input{"past_len", Element::int64};
constexpr Input mask_input{"tree_mask", Element::any};
constexpr Input positions_input{"positions", Element::int64};
constexpr Input sinks_input{"sinks", Element::float32, Presence::optional};
constexpr Input k_scales_input{"k_scales", Element::float32, Presence::optional};
constexpr Input v_scales_input{"v_scales", Element::float32, Presence::optional};

Cache cache_of(Element element) {
    if (element == Element::float32)
        return Cache::single;
    if (element == Element::float16)
        return Cache::half;
    if (element == Element::int8)
        return Cache::int8;
    throw Error("cache_k is neither float32, float16 nor int8");
}

struct Rules {
    explicit Rules(const Node &node)
        : scale(node.real("scale", 1.0F)), softcap(node.real("softcap", 0.0F)),
          window(node.integer("window", 0)) {
        if (!(softcap >= 0))
            throw Error("attribute softcap is negative; 0 means none");
        if (window < 0)
            throw Error("attribute window is negative; 0 means none");
    }

    float scale, softcap;
    std::int64_t window;
};

void place_cache(Attention &attention, const Call &call, std::size_t tail, std::int64_t kv_heads,
                 std::int64_t head_size) {
    const Tensor k = call.input(tail + cache_k), v = call.input(tail + cache_v);
    expect("cache_k", k, Element::any, {kv_heads, any_size, head_size});
    expect("cache_v", v, k.element, {kv_heads, k.dims[1], head_size});
    attention.cache = cache_of(k.element);
    attention.cache_k = k.data;
    attention.cache_v = v.data;
    attention.cache_rows = size(k.dims[1]);
    const Tensor of_k = call.input(tail + k_scales), of_v = call.input(tail + v_scales);
    if (attention.cache == Cache::int8) {
        expect("k_scales", of_k, Element::float32, {kv_heads, k.dims[1]});
        expect("v_scales", of_v, Element::float32, {kv_heads, k.dims[1]});
        attention.k_scales = of_k.as<float>();
        attention.v_scales = of_v.as<float>();
    } else if (of_k || of_v) {
        throw Error("k_scales and v_scales are given for a cache that is not int8");
    }
}

// Parents stand before their children, so that walking up from any column ends.
void check_parents(const std::int64_t *parents, std::size_t width) {
    for (std::size_t i = 0; i < width; ++i)
        if (parents[i] < -1 || parents[i] >= static_cast<std::int64_t>(i))
            throw Error("tree_mask names " + std::to_string(parents[i]) + " as the parent of column " +
                        std::to_string(i) + "; a parent is an earlier column, or -1");
}

void place_tree(Attention &attention, const Call &call, std::size_t tail, std::int64_t rows) {
    const Tensor mask = call.input(tail + tree_mask);
    if (mask.element == Element::boolean) {
        expect("tree_mask", mask, Element::boolean, {rows, any_size});
        attention.mask = mask.as<std::uint8_t>();
    } else {
        expect("tree_mask", mask, Element::int64, {any_size});
        attention.parents = mask.as<std::int64_t>();
        check_parents(attention.parents, size(mask.last()));
    }
    attention.width = size(mask.last());
    const Tensor past = call.input(tail + past_len), where = call.input(tail + positions);
    expect("past_len", past, Element::int64, {1});
    expect("positions", where, Element::int64, {rows});
    attention.positions = where.as<std::int64_t>();
    const std::int64_t length = *past.as<std::int64_t>(), waiting = mask.last() - rows;
    if (length < 0 || length > static_cast<std::int64_t>(attention.cache_rows))
        throw Error("past_len is " + std::to_string(length) + ", but the cache has " +
                    std::to_string(attention.cache_rows) + " rows");
    if (waiting < 0 || waiting > length)
        throw Error("tree_mask has " + std::to_string(mask.last()) + " columns for " + std::to_string(rows) +
                    " new rows and " + std::to_string(length) + " cache rows");
    attention.past = size(length);
}

// What is the same for both operators; `rows`, `q`, `k_new`, `v_new` and `out` are left to them.
Attention placed(const Call &call, const Rules &rules, std::size_t tail, std::int64_t q_heads,
                 std::int64_t kv_heads, std::int64_t rows, std::int64_t head_size) {
    if (kv_heads < 1 || head_size < 1 || head_size > largest_head || q_heads < 1 || q_heads % kv_heads != 0)
        throw Error(std::to_string(q_heads) + " query heads cannot share " + std::to_string(kv_heads) +
                    " key heads of size " + std::to_string(head_size));
    Attention attention{};
    attention.q_heads = size(q_heads);
    attention.kv_heads = size(kv_heads);
    attention.rows = size(rows);
    attention.size = size(head_size);
    attention.scale = rules.scale;
    attention.softcap = rules.softcap;
    attention.window = rules.window;
    place_cache(attention, call, tail, kv_heads, head_size);
    place_tree(attention, call, tail, rows);
    if (const Tensor given = call.input(tail + sinks)) {
        expect("sinks", given, Element::float32, {q_heads});
        attention.sinks = given.as<float>();
    }
    return attention;
}

class TreeAttention {
  public:
    static constexpr const char *name = "TreeAttention";
    static constexpr std::array<Input, 11> inputs{Input{"q", Element::float32},
                                                  Input{"k_new", Element::float32},
                                                  Input{"v_new", Element::float32},
                                                  cache_k_input,
                                                  cache_v_input,
                                                  past_input,
                                                  mask_input,
                                                  positions_input,
                                                  sinks_input,
                                                  k_scales_input,
                                                  v_scales_input};
    static constexpr std::size_t outputs = 1;

    explicit TreeAttention(const Node &node) : rules_(node) {}

    void run(const Call &call) const {
        const Tensor q = call.input(0), k = call.input(1), v = call.input(2);
        expect("q", q, Element::float32, {1, any_size, any_size, any_size});
        const std::int64_t heads = q.dims[1], rows = q.dims[2], head_size = q.dims[3];
        expect("k_new", k, Element::float32, {1, any_size, rows, head_size});
        expect("v_new", v, Element::float32, {1, k.dims[1], rows, head_size});
        Attention attention = placed(call, rules_, 3, heads, k.dims[1], rows, head_size);
        const std::size_t stride = size(head_size), head_stride = size(rows) * stride;
        attention.q = {q.as<float>(), head_stride, stride};
        attention.k_new = {k.as<float>(), head_stride, stride};
        attention.v_new = {v.as<float>(), head_stride, stride};
        attention.out = call.output(0, q.dims.data(), q.rank);
        attention.out_head_stride = head_stride;
        attention.out_row_stride = stride;
        if (rows > 0)
            attend(attention, call.pool());
    }

  private:
    Rules rules_;
};

class RotaryTreeAttention {
  public:
    static constexpr const char *name = "RotaryTreeAttention";
    static constexpr std::array<Input, 13> inputs{Input{"qkv", Element::float32},
                                                  Input{"cos", Element::float32},
                                                  Input{"sin", Element::float32},
                                                  Input{"q_norm", Element::float32, Presence::optional},
                                                  Input{"k_norm", Element::float32, Presence::optional},
                                                  cache_k_input,
                                                  cache_v_input,
                                                  past_input,
                                                  mask_input,
                                                  positions_input,
                                                  sinks_input,
                                                  k_scales_input,
                                                  v_scales_input};
    static constexpr std::size_t outputs = 3;

    explicit RotaryTreeAttention(const Node &node)
        : rules_(node), q_heads_(node.between("q_heads", 1, most_heads)),
          kv_heads_(node.between("kv_heads", 1, most_heads)), epsilon_(node.real("epsilon", 0.0F)),
          interleaved_(node.integer("interleaved", 0) != 0) {}

    void run(const Call &call) const {
        const Tensor qkv = call.input(0);
        expect("qkv", qkv, Element::float32, {1, any_size, any_size});
        const Tensor cache = call.input(5);
        expect("cache_k", cache, Element::any, {kv_heads_, any_size, any_size});
        const std::int64_t rows = qkv.dims[1], head_size = cache.dims[2];
        Attention attention = placed(call, rules_, 5, q_heads_, kv_heads_, rows, head_size);
        expect("qkv", qkv, Element::float32, {1, rows, (q_heads_ + 2 * kv_heads_) * head_size});
        Heads heads = heads_of(call, attention);

        const std::int64_t out_dims[] = {1, rows, q_heads_ * head_size};
        const std::int64_t new_dims[] = {kv_heads_, rows, head_size};
        const std::size_t stride = size(head_size), head_stride = size(rows) * stride;
        attention.out = call.output(0, out_dims, 3);
        attention.out_head_stride = stride;
        attention.out_row_stride = attention.q_heads * stride;
        heads.qkv = qkv.as<float>();
        heads.new_k = call.output(1, new_dims, 3);
        heads.new_v = call.output(2, new_dims, 3);
        if (rows == 0)
            return;
        const std::unique_ptr<float[]> q(new float[attention.q_heads * head_stride]);
        heads.q = q.get();
        attention.q = {heads.q, head_stride, stride};
        attention.k_new = {heads.new_k, head_stride, stride};
        attention.v_new = {heads.new_v, head_stride, stride};
        prepare_heads(heads, call.pool());
        attend(attention, call.pool());
    }

  private:
    Heads heads_of(const Call &call, const Attention &attention) const {
        const auto rows = static_cast<std::int64_t>(attention.rows);
        const auto head_size = static_cast<std::int64_t>(attention.size);
        const Tensor cos = call.input(1), sin = call.input(2), q_norm = call.input(3), k_norm = call.input(4);
        expect("cos", cos, Element::float32, {1, rows, any_size});
        expect("sin", sin, Element::float32, {1, rows, cos.last()});
        if (cos.last() > head_size / 2)
            throw Error("cos turns " + std::to_string(cos.last()) + " pairs of a head of " +
                        std::to_string(head_size));
        if (q_norm)
            expect("q_norm", q_norm, Element::float32, {head_size});
        if (k_norm)
            expect("k_norm", k_norm, Element::float32, {head_size});
        Heads heads{};
        heads.q_heads = attention.q_heads;
        heads.kv_heads = attention.kv_heads;
        heads.rows = attention.rows;
        heads.size = attention.size;
        heads.cos = cos.as<float>();
        heads.sin = sin.as<float>();
        heads.rotary = 2 * size(cos.last());
        heads.interleaved = interleaved_;
        heads.q_norm = q_norm.as<float>();
        heads.k_norm = k_norm.as<float>();
        heads.epsilon = epsilon_;
        heads.cache = attention.cache;
        return heads;
    }

    Rules rules_;
    std::int64_t q_heads_, kv_heads_;
    float epsilon_;
    bool interleaved_;
};

} // namespace

const ort::CustomOp *const *attention_operators(std::size_t &count) {
    static const Operator<TreeAttention> tree;
    static const Operator<RotaryTreeAttention> rotary;
    static const ort::CustomOp *const all[] = {&tree, &rotary};
    count = std::size(all);
    return all;
}

} // namespace paceline
