// CUDA's runtime: launches and their attributes, errors, devices, streams; and what Python asks of the emulator itself.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "scheduler.h"

namespace emulator {

constexpr unsigned most_threads = 1024;
constexpr size_t shared_without_asking = 48 * 1024;
constexpr size_t most_shared = (__CUDA_ARCH__ >= 800 ? 163 : 64) * 1024;

namespace {

struct Record {
    const void* kernel;
    dim3 grid, block;
    size_t shared_bytes;
    int device;
    cudaStream_t stream;
};

std::mutex one_launch;
// As in CUDA, the system thread's own.
thread_local std::string message;
thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;
thread_local cudaStream_t stream = nullptr;
std::map<const void*, size_t> asked_shared;
bool recording = false;
std::vector<Record> records;

cudaError_t check_launch(const cudaLaunchConfig_t& config, const void* kernel, bool cooperative) {
    const dim3 grid = config.gridDim, block = config.blockDim;
    if (uint64_t(block.x) * block.y * block.z > most_threads || block.z > 64 || block.x * block.y * block.z == 0) {
        return fail(cudaErrorInvalidConfiguration, "a block of (%u, %u, %u) threads, expected 1 to %u in all", block.x,
                    block.y, block.z, most_threads);
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
        return fail(cudaErrorInvalidConfiguration,
                    "a grid of (%u, %u, %u) blocks, expected 1 to (2147483647, 65535, 65535)", grid.x, grid.y, grid.z);
    }
    const auto asked = asked_shared.find(kernel);
    const size_t allowed = std::max(shared_without_asking, asked == asked_shared.end() ? 0 : asked->second);
    if (config.dynamicSmemBytes > allowed) {
        return fail(cudaErrorInvalidValue, "%zu bytes of shared memory, expected at most %zu unless asked for",
                    config.dynamicSmemBytes, allowed);
    }
    const size_t threads = size_t(grid.x) * grid.y * grid.z * count(block);
    if (cooperative && threads > cooperative_threads) {
        return fail(cudaErrorCooperativeLaunchTooLarge, "%zu threads, expected at most %zu, which fit together",
                    threads, cooperative_threads);
    }
    return cudaSuccess;
}

}  // namespace

cudaError_t fail(cudaError_t error, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    message = text;
    return last_error = error;
}

cudaStream_t current_stream() { return stream; }

cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*call)(const void*),
                const void* arguments) {
    const std::lock_guard<std::mutex> lock(one_launch);
    bool cooperative = false, overlaps = false;
    for (unsigned a = 0; a < config.numAttrs; ++a) {
        const cudaLaunchAttribute& attribute = config.attrs[a];
        if (attribute.id == cudaLaunchAttributeCooperative) cooperative = attribute.val.cooperative;
        if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
            overlaps = attribute.val.programmaticStreamSerializationAllowed;
        }
    }
    if (const cudaError_t error = check_launch(config, kernel, cooperative)) return error;
    if (recording) {
        records.push_back(
            {kernel, config.gridDim, config.blockDim, config.dynamicSmemBytes, current_device, config.stream});
    }
    return schedule(config, cooperative, overlaps, call, arguments);
}

}  // namespace emulator

using namespace emulator;

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
    const std::lock_guard<std::mutex> lock(one_launch);
    if (value < 0 || size_t(value) > most_shared) {
        return fail(cudaErrorInvalidValue, "asks for %d bytes of shared memory, expected at most %zu", value,
                    most_shared);
    }
    asked_shared[kernel] = value;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device > 1) return fail(cudaErrorInvalidDevice, "device %d, expected 0 or 1", device);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidDevice:
            return "cudaErrorInvalidDevice";
        case cudaErrorIllegalAddress:
            return "cudaErrorIllegalAddress";
        case cudaErrorMisalignedAddress:
            return "cudaErrorMisalignedAddress";
        case cudaErrorLaunchFailure:
            return "cudaErrorLaunchFailure";
        case cudaErrorCooperativeLaunchTooLarge:
            return "cudaErrorCooperativeLaunchTooLarge";
    }
    return "cudaErrorUnknown";
}

// Of the last error, with the thread and the line.
const char* cudaGetErrorString(cudaError_t) { return message.c_str(); }

// Besides CUDA's: what Python asks of the emulator itself.

void emulator_set_stream(uint64_t number) { stream = reinterpret_cast<cudaStream_t>(number); }

void emulator_seed(uint64_t seed) {
    const std::lock_guard<std::mutex> lock(one_launch);
    emulator::seed(seed);
}

void emulator_record(int on) {
    const std::lock_guard<std::mutex> lock(one_launch);
    recording = on;
    records.clear();
}

// A line for each launch since emulator_record: device, stream, grid, block, shared bytes, kernel.
const char* emulator_records() {
    static thread_local std::string lines;
    const std::lock_guard<std::mutex> lock(one_launch);
    lines.clear();
    for (const Record& r : records) {
        Dl_info symbol{};
        dladdr(r.kernel, &symbol);
        char* name = symbol.dli_sname ? abi::__cxa_demangle(symbol.dli_sname, nullptr, nullptr, nullptr) : nullptr;
        char numbers[160];
        std::snprintf(numbers, sizeof numbers, "%d %p %u,%u,%u %u,%u,%u %zu ", r.device, static_cast<void*>(r.stream),
                      r.grid.x, r.grid.y, r.grid.z, r.block.x, r.block.y, r.block.z, r.shared_bytes);
        lines += numbers + std::string(name ? name : symbol.dli_sname ? symbol.dli_sname : "?") + "\n";
        std::free(name);
    }
    return lines.c_str();
}
}
