// What the shared library exports: its operators for ONNX Runtime, and the choice of instruction set for
// Python.
#include "isa.h"
#include "op.h"
#include <cstring>

#if defined(_WIN32)
#define PACELINE_EXPORT extern "C" __declspec(dllexport)
#else
#define PACELINE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace paceline {
namespace {

constexpr Level levels[] = {Level::portable,   Level::avx2, Level::avxvnni,
                            Level::avx512vnni, Level::neon, Level::i8mm};

void add_all(const ort::Api &api, ort::Domain *domain,
             const ort::CustomOp *const *(*operators)(std::size_t &)) {
    std::size_t count = 0;
    const ort::CustomOp *const *all = operators(count);
    for (std::size_t i = 0; i < count; ++i)
        check(api, api.add_operator(domain, all[i]));
}

// One for the whole process: sessions keep pointers to it and to its operators.
ort::Domain *domain(const ort::Api &api) {
    static ort::Domain *const made = [&] {
        ort::Domain *fresh = nullptr;
        check(api, api.create_domain("paceline", &fresh));
        add_all(api, fresh, matmul_operators);
        add_all(api, fresh, attention_operators);
        return fresh;
    }();
    return made;
}

} // namespace
} // namespace paceline

// The version of the packed layout that the kernels read.
PACELINE_EXPORT int paceline_version(void) { return 2; }

PACELINE_EXPORT const char *paceline_level(void) { return paceline::name_of(paceline::active()); }

// Names with commas between them, the slowest first.
PACELINE_EXPORT const char *paceline_levels(void) {
    static const std::string names = [] {
        std::string joined;
        for (const paceline::Level level : paceline::levels)
            if (paceline::supported(level))
                joined += (joined.empty() ? "" : ",") + std::string(paceline::name_of(level));
        return joined;
    }();
    return names.c_str();
}

// 0 if this machine has the level, which then serves the whole process; else 1 and nothing changes.
PACELINE_EXPORT int paceline_use(const char *name) {
    for (const paceline::Level level : paceline::levels)
        if (std::strcmp(name, paceline::name_of(level)) == 0)
            return paceline::use(level) ? 0 : 1;
    return 1;
}

PACELINE_EXPORT paceline::ort::Status *RegisterCustomOps(paceline::ort::SessionOptions *options,
                                                         const paceline::ort::ApiBase *base) {
    using namespace paceline;
    const ort::Api *api = base->api(ort::api_version);
    if (api == nullptr)
        return nullptr; // before ONNX Runtime 1.21: nothing is added, and the function bodies run
    return guarded(*api, "registration", [&] { check(*api, api->add_domain(options, domain(*api))); });
}
