// An operator for ONNX Runtime around a kernel class: attributes, checked inputs, outputs, and errors as
// status.
//
// A kernel class has `name`, `inputs` and `outputs` (static), a constructor from `Node` that reads the
// attributes, and `void run(const Call &) const`. It throws `Error`, which never leaves the library as an
// exception.
#pragma once
#include "ort_abi.h"
#include "pool.h"
#include <algorithm>
#include <array>
#include <exception>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>

namespace paceline {

// What is wrong with a node or with what it was fed, in one line.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Throws what a failed status says.
void check(const ort::Api &api, ort::Status *status);

struct Input {
    const char *name;
    ort::Element element; // `any` where the kernel itself checks
    ort::Presence presence = ort::Presence::required;
};

constexpr std::size_t max_rank = 8;

// A view of one input. `data` is null where an optional input is absent (or where a tensor is empty).
struct Tensor {
    bool present = false;
    const void *data = nullptr;
    ort::Element element = ort::Element::any;
    std::size_t rank = 0;
    std::array<std::int64_t, max_rank> dims{};

    explicit operator bool() const { return present; }
    template <class T> const T *as() const { return static_cast<const T *>(data); }
    std::int64_t last() const { return dims[rank - 1]; }
    // How many rows of the last dimension there are.
    std::size_t rows() const;
};

constexpr std::int64_t any_size = -1;

// Throws unless the tensor has this type and these sizes; `any_size` and Element::any match everything.
void expect(const char *name, const Tensor &tensor, ort::Element element,
            std::initializer_list<std::int64_t> dims);

std::string described(ort::Element element, const std::int64_t *dims, std::size_t rank);

// A node while its kernel is created.
class Node {
  public:
    Node(const ort::Api &api, const ort::KernelInfo *info) : api_(api), info_(info) {}

    std::string name() const;
    std::int64_t integer(const char *attribute) const;
    std::int64_t integer(const char *attribute, std::int64_t fallback) const;
    std::int64_t between(const char *attribute, std::int64_t low, std::int64_t high) const;
    float real(const char *attribute) const;
    float real(const char *attribute, float fallback) const;
    std::string text(const char *attribute) const;
    // The input if it is a constant of the graph, which then stays where it is as long as the kernel lives;
    // else absent.
    Tensor constant(std::size_t index) const;

  private:
    bool has(const char *attribute) const;

    const ort::Api &api_;
    const ort::KernelInfo *info_;
};

// A node while it runs.
class Call {
  public:
    Call(const ort::Api &api, ort::KernelContext *context);

    Tensor input(std::size_t index) const;
    float *output(std::size_t index, const std::int64_t *dims, std::size_t rank) const;
    // ONNX Runtime's own threads. Lives as long as the call.
    Pool pool() const;

  private:
    static void run(void *call, void (*task)(void *, std::size_t), std::size_t count, void *user);

    const ort::Api &api_;
    ort::KernelContext *context_;
    std::size_t inputs_ = 0;
};

ort::Status *failed(const ort::Api &api, ort::Code code, const char *op, const char *cause) noexcept;

template <class Action>
ort::Status *guarded(const ort::Api &api, const char *op, const Action &action) noexcept {
    try {
        action();
        return nullptr;
    } catch (const Error &error) {
        return failed(api, ort::Code::invalid_argument, op, error.what());
    } catch (const std::bad_alloc &) {
        return failed(api, ort::Code::fail, op, "out of memory; use a smaller context or a smaller model");
    } catch (const std::exception &error) {
        return failed(api, ort::Code::fail, op, error.what());
    } catch (...) {
        return failed(api, ort::Code::fail, op, "unknown failure");
    }
}

template <class Kernel> class Operator : public ort::CustomOp {
    struct Instance {
        const ort::Api &api;
        const Kernel kernel;
    };

  public:
    Operator() : ort::CustomOp{} {
        version = ort::api_version;
        name = [](const CustomOp *) { return Kernel::name; };
        provider = [](const CustomOp *) { return "CPUExecutionProvider"; };
        input_count = [](const CustomOp *) { return Kernel::inputs.size(); };
        input_type = [](const CustomOp *, std::size_t index) { return Kernel::inputs[index].element; };
        input_presence = [](const CustomOp *, std::size_t index) { return Kernel::inputs[index].presence; };
        input_memory = [](const CustomOp *, std::size_t) { return 0; };
        output_count = [](const CustomOp *) { return Kernel::outputs; };
        output_type = [](const CustomOp *, std::size_t) { return ort::Element::float32; };
        output_presence = [](const CustomOp *, std::size_t) { return ort::Presence::required; };
        create = [](const CustomOp *, const ort::Api *api, const ort::KernelInfo *info, void **kernel) {
            return guarded(*api, Kernel::name, [&] {
                const Node node(*api, info);
                try {
                    *kernel = new Instance{*api, Kernel(node)};
                } catch (const Error &error) {
                    throw Error("node " + node.name() + ": " + error.what());
                }
            });
        };
        compute = [](void *kernel, ort::KernelContext *context) {
            const auto &instance = *static_cast<const Instance *>(kernel);
            return guarded(instance.api, Kernel::name,
                           [&] { instance.kernel.run(Call(instance.api, context)); });
        };
        destroy = [](void *kernel) { delete static_cast<Instance *>(kernel); };
    }
};

// The operators of each file, as static objects: ONNX Runtime keeps pointers to them.
const ort::CustomOp *const *matmul_operators(std::size_t &count);
const ort::CustomOp *const *attention_operators(std::size_t &count);

} // namespace paceline
