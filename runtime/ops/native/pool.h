// Running independent tasks on whichever thread pool the caller has.
#pragma once
#include <cstddef>

namespace paceline {

// `run` calls task(user, i) once for every i in [0, count), on any thread and in any order, and returns when
// all are done.
struct Pool {
    void *context;
    void (*run)(void *context, void (*task)(void *user, std::size_t index), std::size_t count, void *user);
};

template <class Task> void parallel(const Pool &pool, std::size_t count, const Task &task) {
    if (count == 0)
        return;
    if (count == 1) {
        task(std::size_t{0});
        return;
    }
    pool.run(
        pool.context, [](void *user, std::size_t index) { (*static_cast<const Task *>(user))(index); }, count,
        const_cast<void *>(static_cast<const void *>(&task)));
}

// Everything on the calling thread.
inline Pool serial_pool() {
    return {nullptr, [](void *, void (*task)(void *, std::size_t), std::size_t count, void *user) {
                for (std::size_t i = 0; i < count; ++i)
                    task(user, i);
            }};
}

} // namespace paceline
