// QMatMul and its fused forms, and QEmbedding: see runtime/ops/packed_matmul.py.
#include "matmul.h"
#include "op.h"
#include <iterator>

namespace paceline {
namespace {

using ort::Element;
using ort::Presence;

constexpr std::int64_t largest = std::int64_t{1} << 30; // of K and N: sizes in bytes stay far from overflow
constexpr std::int64_t largest_block = 65536;           // 255 * 127 * block fits into 32 bits

// The packed matrix of a node: its attributes, and its pointers once the inputs are known to fit.
class Packed {
  public:
    Packed(const Node &node, std::size_t weights) : index_(weights) {
        matrix_.k = static_cast<std::size_t>(node.between("K", 1, largest));
        matrix_.n = static_cast<std::size_t>(node.between("N", 1, largest));
        bits_ = node.integer("bits");
        if (bits_ != 4 && bits_ != 5 && bits_ != 6 && bits_ != 8 && bits_ != 16 && bits_ != 32)
            throw Error("attribute bits is " + std::to_string(bits_) + ", not 4, 5, 6, 8, 16 or 32");
        const std::int64_t block = node.integer("block_size", 0), unit = bits_ == 5   ? 32
                                                                         : bits_ == 6 ? 16
                                                                                      : 8;
        if (bits_ > 8 ? block != 0 : block <= 0 || block > largest_block || block % unit != 0)
            throw Error("attribute block_size is " + std::to_string(block) + ", not " +
                        (bits_ > 8 ? "0 for weights that are not quantised"
                                   : "a multiple of " + std::to_string(unit) + " up to 65536"));
        matrix_.block = static_cast<std::size_t>(block);
        const Tensor constant_weights = node.constant(index_);
        const Tensor constant_scales = node.constant(index_ + 1);
        if (constant_weights && (constant_scales || bits_ > 8)) {
            matrix_ = placed(constant_weights, constant_scales);
            constant_ = true;
        }
    }

    std::size_t k() const { return matrix_.k; }
    std::size_t n() const { return matrix_.n; }
    bool quantised() const { return bits_ <= 8; }

    PackedMatrix matrix(const Call &call) const {
        return constant_ ? matrix_ : placed(call.input(index_), call.input(index_ + 1));
    }

  private:
    PackedMatrix placed(const Tensor &weights, const Tensor &scales) const {
        PackedMatrix matrix = matrix_;
        matrix.kind = kind_of(weights);
        const auto tiles = static_cast<std::int64_t>(matrix.tiles());
        const auto k = static_cast<std::int64_t>(matrix.padded_k());
        if (quantised()) {
            expect("weights", weights, Element::uint8, {tiles, k * bits_ / 32, 64});
            matrix.minima = bits_ < 8 && scales.rank == 3 && scales.dims[2] == 32;
            expect("scales", scales, Element::float16,
                   {tiles, static_cast<std::int64_t>(matrix.blocks()), matrix.minima ? 32 : 16});
        } else {
            expect("weights", weights, weights.element, {tiles, k, 16});
            if (scales)
                throw Error("scales are given for weights that are not quantised");
        }
        matrix.weights = weights.data;
        matrix.scales = scales.as<std::uint16_t>();
        return matrix;
    }

    Kind kind_of(const Tensor &weights) const {
        if (bits_ == 4)
            return Kind::codes4;
        if (bits_ == 5)
            return Kind::codes5;
        if (bits_ == 6)
            return Kind::codes6;
        if (bits_ == 8)
            return Kind::codes8;
        if (bits_ == 32 && weights.element == Element::float32)
            return Kind::single;
        if (bits_ == 16 && weights.element == Element::float16)
            return Kind::half;
        if (bits_ == 16 && weights.element == Element::bfloat16)
            return Kind::bfloat;
        throw Error("weights are " + described(weights.element, weights.dims.data(), weights.rank) +
                    ", not of " + std::to_string(bits_) + " bits");
    }

    std::size_t index_;
    std::int64_t bits_ = 0;
    PackedMatrix matrix_{};
    bool constant_ = false;
};

Activation activation_of(const Node &node) {
    const std::string name = node.text("activation");
    if (name == "silu")
        return Activation::silu;
    if (name == "gelu")
        return Activation::gelu;
    if (name == "gelu_tanh")
        return Activation::gelu_tanh;
    throw Error("attribute activation is '" + name.substr(0, 40) + "', not silu, gelu or gelu_tanh");
}

bool exact_of(const Node &node) {
    const std::int64_t bits = node.integer("activation_bits", 8);
    if (bits != 8 && bits != 32)
        throw Error("attribute activation_bits is " + std::to_string(bits) + ", not 8 or 32");
    return bits == 32;
}

constexpr Input x_input{"x", Element::float32};
constexpr Input norm_input{"norm", Element::float32};
constexpr Input residual_input{"residual", Element::float32};
constexpr Input weights_input{"weights", Element::any};
constexpr Input scales_input{"scales", Element::float16, Presence::optional};
constexpr Input bias_input{"bias", Element::float32, Presence::optional};

struct Plain {
    static constexpr const char *name = "QMatMul";
    static constexpr std::array<Input, 4> inputs{x_input, weights_input, scales_input, bias_input};
    static constexpr bool norm = false, residual = false, glu = false;
};
struct Added {
    static constexpr const char *name = "QMatMulAdd";
    static constexpr std::array<Input, 5> inputs{x_input, residual_input, weights_input, scales_input,
                                                 bias_input};
    static constexpr bool norm = false, residual = true, glu = false;
};
struct Normed {
    static constexpr const char *name = "NormQMatMul";
    static constexpr std::array<Input, 5> inputs{x_input, norm_input, weights_input, scales_input,
                                                 bias_input};
    static constexpr bool norm = true, residual = false, glu = false;
};
struct Gated {
    static constexpr const char *name = "QMatMulGlu";
    static constexpr std::array<Input, 4> inputs{x_input, weights_input, scales_input, bias_input};
    static constexpr bool norm = false, residual = false, glu = true;
};
struct NormedGated {
    static constexpr const char *name = "NormQMatMulGlu";
    static constexpr std::array<Input, 5> inputs{x_input, norm_input, weights_input, scales_input,
                                                 bias_input};
    static constexpr bool norm = true, residual = false, glu = true;
};

// One product; `Form` says which of the extra inputs it has, and their order.
template <class Form> class Product : public Form {
  public:
    static constexpr std::size_t outputs = 1;

    explicit Product(const Node &node) : packed_(node, weights_index) {
        exact_ = exact_of(node) || !packed_.quantised();
        if constexpr (Form::norm)
            epsilon_ = node.real("epsilon");
        if constexpr (Form::glu) {
            activation_ = activation_of(node);
            if (packed_.n() % 2 != 0)
                throw Error("attribute N is odd, but half of the columns are the gate");
        }
    }

    void run(const Call &call) const {
        const auto k = static_cast<std::int64_t>(packed_.k()), n = static_cast<std::int64_t>(packed_.n());
        const Tensor x = call.input(0);
        if (x.rank == 0 || x.last() != k)
            throw Error("x is " + described(x.element, x.dims.data(), x.rank) +
                        ", but its last size must be K = " + std::to_string(k));
        Tensor shape = x;
        shape.dims[x.rank - 1] = Form::glu ? n / 2 : n;
        MatMul product{};
        product.x = x.as<float>();
        product.rows = x.rows();
        product.w = packed_.matrix(call);
        product.activation = activation_;
        product.exact = exact_;
        if constexpr (Form::norm) {
            const Tensor norm = call.input(1);
            expect("norm", norm, Element::float32, {k});
            product.norm = norm.as<float>();
            product.epsilon = epsilon_;
        }
        if constexpr (Form::residual) {
            const Tensor residual = call.input(1);
            if (residual.rank != shape.rank || residual.dims != shape.dims)
                throw Error("residual is " +
                            described(residual.element, residual.dims.data(), residual.rank) +
                            " instead of " + described(Element::float32, shape.dims.data(), shape.rank));
            product.residual = residual.as<float>();
        }
        if (const Tensor bias = call.input(weights_index + 2)) {
            expect("bias", bias, Element::float32, {n});
            product.bias = bias.as<float>();
        }
        product.y = call.output(0, shape.dims.data(), shape.rank);
        if (product.rows > 0)
            matmul(product, call.pool());
    }

  private:
    static constexpr std::size_t weights_index = Form::norm || Form::residual ? 2 : 1;

    Packed packed_;
    Activation activation_ = Activation::none;
    float epsilon_ = 0;
    bool exact_ = false;
};

class Embedding {
  public:
    static constexpr const char *name = "QEmbedding";
    static constexpr std::array<Input, 3> inputs{Input{"ids", Element::int64}, weights_input, scales_input};
    static constexpr std::size_t outputs = 1;

    explicit Embedding(const Node &node) : packed_(node, 1) {}

    void run(const Call &call) const {
        const Tensor ids = call.input(0);
        if (ids.rank == max_rank)
            throw Error("ids have too many dimensions");
        Tensor shape = ids;
        shape.dims[shape.rank++] = static_cast<std::int64_t>(packed_.k());
        const std::size_t count = shape.rows();
        const auto *id = ids.as<std::int64_t>();
        for (std::size_t i = 0; i < count; ++i)
            if (id[i] < 0 || id[i] >= static_cast<std::int64_t>(packed_.n()))
                throw Error("token id " + std::to_string(id[i]) + " is not in a vocabulary of " +
                            std::to_string(packed_.n()));
        const PackedMatrix matrix = packed_.matrix(call);
        float *out = call.output(0, shape.dims.data(), shape.rank);
        if (count > 0)
            embed(id, count, matrix, out);
    }

  private:
    Packed packed_;
};

} // namespace

const ort::CustomOp *const *matmul_operators(std::size_t &count) {
    static const Operator<Product<Plain>> plain;
    static const Operator<Product<Added>> added;
    static const Operator<Product<Normed>> normed;
    static const Operator<Product<Gated>> gated;
    static const Operator<Product<NormedGated>> normed_gated;
    static const Operator<Embedding> embedding;
    static const ort::CustomOp *const all[] = {&plain, &added, &normed, &gated, &normed_gated, &embedding};
    count = std::size(all);
    return all;
}

} // namespace paceline
