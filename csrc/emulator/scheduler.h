// What the scheduler (scheduler.cpp) and the runtime (runtime.cpp) are to one another.
#pragma once

#include "cuda_runtime.h"

namespace emulator {

#ifdef EMULATOR_THREAD
constexpr bool watched = true;
#else
constexpr bool watched = false;
#endif
constexpr size_t watched_threads = 6000;  // at a time: ThreadSanitizer has room for 8,128
constexpr size_t cooperative_threads = watched ? watched_threads : 8192;  // that fit on this device together

inline unsigned count(dim3 size) { return size.x * size.y * size.z; }

// Runs a launch that has been checked. One at a time.
cudaError_t schedule(const cudaLaunchConfig_t& config, bool cooperative, bool overlaps, void (*call)(const void*),
                     const void* arguments);

// Of the order of threads and blocks.
void seed(uint64_t number);

// Makes this the last error, with its message, and returns it.
cudaError_t fail(cudaError_t error, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emulator
