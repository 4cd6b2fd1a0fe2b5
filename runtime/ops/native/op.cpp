// What every operator needs from ONNX Runtime: see op.h.
#include "op.h"
#include <cstdio>
#include <mutex>

namespace paceline {
namespace {

// Whether a call that may fail did not; what it complained about is dropped.
bool succeeded(const ort::Api &api, ort::Status *status) {
    if (status == nullptr)
        return true;
    api.release_status(status);
    return false;
}

const char *name_of(ort::Element element) {
    switch (element) {
    case ort::Element::float32:
        return "float32";
    case ort::Element::uint8:
        return "uint8";
    case ort::Element::int8:
        return "int8";
    case ort::Element::int32:
        return "int32";
    case ort::Element::int64:
        return "int64";
    case ort::Element::boolean:
        return "bool";
    case ort::Element::float16:
        return "float16";
    case ort::Element::bfloat16:
        return "bfloat16";
    default:
        return "another type";
    }
}

Tensor viewed(const ort::Api &api, const ort::Value *value) {
    Tensor tensor;
    if (value == nullptr)
        return tensor;
    ort::TensorInfo *info = nullptr;
    check(api, api.tensor_info(value, &info));
    const bool read = succeeded(api, api.element_type(info, &tensor.element)) &&
                      succeeded(api, api.rank(info, &tensor.rank)) && tensor.rank <= max_rank &&
                      succeeded(api, api.dimensions(info, tensor.dims.data(), tensor.rank));
    api.release_tensor_info(info);
    if (!read)
        throw Error("an input has more than 8 dimensions or is no tensor");
    void *data = nullptr;
    check(api, api.tensor_data(value, &data));
    tensor.data = data;
    tensor.present = true;
    return tensor;
}

// Tasks run on threads of ONNX Runtime, which must not see an exception: the first one is kept for the
// caller.
struct Job {
    void (*task)(void *, std::size_t);
    void *user;
    std::mutex lock;
    std::exception_ptr error;

    static void run(void *job, std::size_t index) noexcept {
        auto &self = *static_cast<Job *>(job);
        try {
            self.task(self.user, index);
        } catch (...) {
            const std::lock_guard<std::mutex> guard(self.lock);
            self.error = std::current_exception();
        }
    }
};

} // namespace

void check(const ort::Api &api, ort::Status *status) {
    if (status == nullptr)
        return;
    const std::string message = api.error_message(status);
    api.release_status(status);
    throw Error(message);
}

std::size_t Tensor::rows() const {
    std::size_t count = 1;
    for (std::size_t i = 0; i + 1 < rank; ++i)
        count *= static_cast<std::size_t>(dims[i]);
    return count;
}

std::string described(ort::Element element, const std::int64_t *dims, std::size_t rank) {
    std::string text = element == ort::Element::any ? "" : name_of(element);
    text += "[";
    for (std::size_t i = 0; i < rank; ++i)
        text += (i == 0 ? "" : ", ") + (dims[i] == any_size ? std::string("any") : std::to_string(dims[i]));
    return text + "]";
}

void expect(const char *name, const Tensor &tensor, ort::Element element,
            std::initializer_list<std::int64_t> dims) {
    if (!tensor)
        throw Error(std::string(name) + " is absent; export the model again");
    bool right = tensor.rank == dims.size() && (element == ort::Element::any || tensor.element == element);
    for (std::size_t i = 0; right && i < dims.size(); ++i)
        right = dims.begin()[i] == any_size || dims.begin()[i] == tensor.dims[i];
    if (!right)
        throw Error(std::string(name) + " is " + described(tensor.element, tensor.dims.data(), tensor.rank) +
                    " instead of " + described(element, dims.begin(), dims.size()));
}

std::string Node::name() const {
    std::size_t size = 0;
    std::string value;
    if (succeeded(api_, api_.node_name(info_, nullptr, &size)))
        value.resize(size);
    if (value.empty() || !succeeded(api_, api_.node_name(info_, value.data(), &size)))
        return "?";
    return value.c_str(); // the size counted the terminating zero
}

bool Node::has(const char *attribute) const {
    float real = 0;
    std::int64_t integer = 0;
    std::size_t size = 0;
    return succeeded(api_, api_.attribute_float(info_, attribute, &real)) ||
           succeeded(api_, api_.attribute_integer(info_, attribute, &integer)) ||
           succeeded(api_, api_.attribute_text(info_, attribute, nullptr, &size));
}

std::int64_t Node::integer(const char *attribute) const {
    std::int64_t value = 0;
    if (!succeeded(api_, api_.attribute_integer(info_, attribute, &value)))
        throw Error(std::string("attribute ") + attribute + " is not an integer; export the model again");
    return value;
}

std::int64_t Node::integer(const char *attribute, std::int64_t fallback) const {
    return has(attribute) ? integer(attribute) : fallback;
}

std::int64_t Node::between(const char *attribute, std::int64_t low, std::int64_t high) const {
    const std::int64_t value = integer(attribute);
    if (value < low || value > high)
        throw Error(std::string("attribute ") + attribute + " is " + std::to_string(value) + ", not " +
                    std::to_string(low) + " to " + std::to_string(high));
    return value;
}

float Node::real(const char *attribute) const {
    float value = 0;
    if (!succeeded(api_, api_.attribute_float(info_, attribute, &value)))
        throw Error(std::string("attribute ") + attribute + " is not a float; export the model again");
    return value;
}

float Node::real(const char *attribute, float fallback) const {
    return has(attribute) ? real(attribute) : fallback;
}

std::string Node::text(const char *attribute) const {
    std::size_t size = 0;
    std::string value;
    bool read = succeeded(api_, api_.attribute_text(info_, attribute, nullptr, &size));
    value.resize(size);
    read = read && succeeded(api_, api_.attribute_text(info_, attribute, value.data(), &size));
    if (!read)
        throw Error(std::string("attribute ") + attribute + " is not a string; export the model again");
    return value.c_str(); // the size counted the terminating zero
}

Tensor Node::constant(std::size_t index) const {
    int is_constant = 0;
    const ort::Value *value = nullptr;
    check(api_, api_.constant_input(info_, index, &is_constant, &value));
    return is_constant != 0 ? viewed(api_, value) : Tensor{};
}

Call::Call(const ort::Api &api, ort::KernelContext *context) : api_(api), context_(context) {
    check(api_, api_.input_count(context_, &inputs_));
}

Tensor Call::input(std::size_t index) const {
    const ort::Value *value = nullptr;
    if (index < inputs_)
        check(api_, api_.input(context_, index, &value));
    return viewed(api_, value);
}

float *Call::output(std::size_t index, const std::int64_t *dims, std::size_t rank) const {
    ort::Value *value = nullptr;
    void *data = nullptr;
    check(api_, api_.output(context_, index, dims, rank, &value));
    check(api_, api_.tensor_data(value, &data));
    return static_cast<float *>(data);
}

Pool Call::pool() const { return {const_cast<Call *>(this), run}; }

void Call::run(void *call, void (*task)(void *, std::size_t), std::size_t count, void *user) {
    const auto &self = *static_cast<const Call *>(call);
    Job job{task, user, {}, nullptr};
    check(self.api_, self.api_.parallel_for(self.context_, Job::run, count, 0, &job));
    if (job.error)
        std::rethrow_exception(job.error);
}

ort::Status *failed(const ort::Api &api, ort::Code code, const char *op, const char *cause) noexcept {
    char message[600];
    std::snprintf(message, sizeof message, "paceline::%s: %s", op, cause);
    return api.create_status(code, message);
}

} // namespace paceline
