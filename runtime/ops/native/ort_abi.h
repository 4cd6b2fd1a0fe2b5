// The part of ONNX Runtime's C interface that custom operators need, for 64-bit targets. Its table of
// functions is append-only, so what is asked for at version 21 is there in every later one.
#pragma once
#include <cstddef>
#include <cstdint>

namespace paceline::ort {

constexpr std::uint32_t api_version = 21;

struct Status; // null: all went well
struct SessionOptions;
struct Domain;
struct KernelInfo;    // a node while its kernel is created
struct KernelContext; // a node while it runs
struct Value;
struct TensorInfo;
struct CustomOp;

enum class Code : int { fail = 1, invalid_argument = 2 };
enum class Element : int {
    any = 0,
    float32 = 1,
    uint8 = 2,
    int8 = 3,
    int32 = 6,
    int64 = 7,
    boolean = 9,
    float16 = 10,
    bfloat16 = 16
};
enum class Presence : int { required = 0, optional = 1 };

// A name in front of each function that is used, and its place in the table behind it.
struct Api {
    Status *(*create_status)(Code, const char *message); // 0
    void *unused_1;
    const char *(*error_message)(const Status *); // 2
    void *unused_3[23];
    Status *(*create_domain)(const char *name, Domain **); // 26
    Status *(*add_operator)(Domain *, const CustomOp *);   // 27
    Status *(*add_domain)(SessionOptions *, Domain *);     // 28
    void *unused_29[22];
    Status *(*tensor_data)(const Value *, void **); // 51
    void *unused_52[8];
    Status *(*element_type)(const TensorInfo *, Element *);                 // 60
    Status *(*rank)(const TensorInfo *, std::size_t *);                     // 61
    Status *(*dimensions)(const TensorInfo *, std::int64_t *, std::size_t); // 62
    void *unused_63[2];
    Status *(*tensor_info)(const Value *, TensorInfo **); // 65
    void *unused_66[19];
    Status *(*attribute_float)(const KernelInfo *, const char *name, float *);          // 85
    Status *(*attribute_integer)(const KernelInfo *, const char *name, std::int64_t *); // 86
    Status *(*attribute_text)(const KernelInfo *, const char *, char *, std::size_t *); // 87
    Status *(*input_count)(const KernelContext *, std::size_t *);                       // 88
    void *unused_89;
    Status *(*input)(const KernelContext *, std::size_t, const Value **);                         // 90
    Status *(*output)(KernelContext *, std::size_t, const std::int64_t *, std::size_t, Value **); // 91
    void *unused_92;
    void (*release_status)(Status *); // 93
    void *unused_94[5];
    void (*release_tensor_info)(TensorInfo *); // 99
    void *unused_100[144];
    Status *(*node_name)(const KernelInfo *, char *, std::size_t *); // 244
    void *unused_245[4];
    Status *(*constant_input)(const KernelInfo *, std::size_t, int *is_constant, const Value **); // 249
    void *unused_250[24];
    Status *(*parallel_for)(const KernelContext *, void (*)(void *, std::size_t), std::size_t count,
                            std::size_t batches, void *user); // 274
};

static_assert(sizeof(void *) == 8, "the table is known for 64-bit targets");
static_assert(offsetof(Api, create_domain) == 26 * 8);
static_assert(offsetof(Api, tensor_data) == 51 * 8);
static_assert(offsetof(Api, element_type) == 60 * 8);
static_assert(offsetof(Api, tensor_info) == 65 * 8);
static_assert(offsetof(Api, attribute_float) == 85 * 8);
static_assert(offsetof(Api, input) == 90 * 8);
static_assert(offsetof(Api, release_status) == 93 * 8);
static_assert(offsetof(Api, release_tensor_info) == 99 * 8);
static_assert(offsetof(Api, node_name) == 244 * 8);
static_assert(offsetof(Api, constant_input) == 249 * 8);
static_assert(offsetof(Api, parallel_for) == 274 * 8);

struct ApiBase {
    const Api *(*api)(std::uint32_t version);
    const char *(*runtime_version)();
};

// What ONNX Runtime asks an operator about itself. The pointers that are not used stay null.
struct CustomOp {
    std::uint32_t version;
    void *unused_create_kernel;
    const char *(*name)(const CustomOp *);
    const char *(*provider)(const CustomOp *);
    Element (*input_type)(const CustomOp *, std::size_t);
    std::size_t (*input_count)(const CustomOp *);
    Element (*output_type)(const CustomOp *, std::size_t);
    std::size_t (*output_count)(const CustomOp *);
    void *unused_compute;
    void (*destroy)(void *kernel);
    Presence (*input_presence)(const CustomOp *, std::size_t);
    Presence (*output_presence)(const CustomOp *, std::size_t);
    int (*input_memory)(const CustomOp *,
                        std::size_t); // asked for always, null is not allowed; 0 is the default
    void *unused_variadic[4];         // smallest count and homogeneity of inputs, then of outputs
    Status *(*create)(const CustomOp *, const Api *, const KernelInfo *, void **kernel);
    Status *(*compute)(void *kernel, KernelContext *);
    void *unused_shapes;
    int (*first_version)(const CustomOp *);
    int (*last_version)(const CustomOp *);
    void *unused_aliases[4];
};

static_assert(sizeof(CustomOp) == 208);
static_assert(offsetof(CustomOp, destroy) == 72);
static_assert(offsetof(CustomOp, create) == 136);
static_assert(offsetof(CustomOp, first_version) == 160);

} // namespace paceline::ort
