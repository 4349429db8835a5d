// CUDA's language and runtime for a CPU: what csrc/kernels uses of it, under CUDA's names and with CUDA's rules. A
// kernel is an ordinary function here; each of its threads runs on a fiber of its own (scheduler.cpp).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ _Pragma("GCC error \"shared memory comes from SharedMemory::take\"")

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

// Of the thread that runs now.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorIllegalAddress = 700,
    cudaErrorMisalignedAddress = 716,
    cudaErrorLaunchFailure = 719,
    cudaErrorCooperativeLaunchTooLarge = 720,
};

using cudaStream_t = struct CUstream_st*;

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaLaunchAttributeID {
    cudaLaunchAttributeCooperative = 2,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        int cooperative, programmaticStreamSerializationAllowed;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

extern "C" {
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaGetLastError();
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
}

namespace emulator {

// The stream that torch would call current.
cudaStream_t current_stream();

// The line of a kernel that an error names.
struct Where {
    const char* file;
    int line;
};
// As last parameters: the caller's own place.
#define EMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

constexpr size_t most_parameter_bytes = 32764;

// Runs call(arguments) as every thread of the launch.
cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*call)(const void*), const void* arguments);

void sync_threads(Where where);
void sync_grid(Where where);

// All lanes of `mask` meet here. Each gives a value and gets that of lane `source`; or, for a ballot, a bit of each.
constexpr int ballot = -1, nothing = -2;
uint64_t meet(unsigned mask, uint64_t value, int source, Where where);

template <class T>
T shuffle(unsigned mask, T value, int source, Where where) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = meet(mask, bits, source, where);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

inline int lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % warpSize; }

}  // namespace emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    static_assert((sizeof(Parameters) + ... + 0) <= emulator::most_parameter_bytes, "CUDA's limit");
    using Call = std::tuple<void (*)(Parameters...), std::decay_t<Parameters>...>;
    const Call call(kernel, std::forward<Arguments>(arguments)...);
    auto invoke = [](const void* erased) {
        std::apply([](auto function, const auto&... values) { function(values...); },
                   *static_cast<const Call*>(erased));
    };
    return emulator::run(*config, reinterpret_cast<const void*>(kernel), invoke, &call);
}

inline void __syncthreads(EMULATOR_HERE) { emulator::sync_threads({file, line}); }

inline void __syncwarp(unsigned mask = 0xffffffff, EMULATOR_HERE) {
    emulator::meet(mask, 0, emulator::nothing, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    return emulator::meet(mask, predicate != 0, emulator::ballot, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}

// A shuffle of this width reads another lane of its part of the warp, or its own where there is no such lane. Of a step
// only the last five bits count.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMULATOR_HERE) {
    return emulator::shuffle(mask, value, (emulator::lane() & -width) + (source & (width - 1)), {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_HERE) {
    const int lane = emulator::lane(), source = lane - int(delta & 31);
    return emulator::shuffle(mask, value, source < (lane & -width) ? lane : source, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_HERE) {
    const int lane = emulator::lane(), source = lane + int(delta & 31);
    return emulator::shuffle(mask, value, source < (lane & -width) + width ? source : lane, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, EMULATOR_HERE) {
    const int lane = emulator::lane(), source = lane ^ (bits & 31);
    return emulator::shuffle(mask, value, source < (lane & -width) + width ? source : lane, {file, line});
}

// Atomics have relaxed order, as on a GPU, and the types that CUDA gives them.
namespace emulator {

template <class T, class... Types>
constexpr bool is_one_of = (std::is_same_v<T, Types> || ...);
template <class T>
using Value = std::common_type_t<T>;  // converts to what is pointed to
using Wide = unsigned long long;

template <class T, class F>
T atomic(T* address, F next) {
    T old, replacement;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do {
        replacement = next(old);
    } while (!__atomic_compare_exchange(address, &old, &replacement, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

}  // namespace emulator

template <class T>
T atomicAdd(T* address, emulator::Value<T> value) {
    static_assert(emulator::is_one_of<T, int, unsigned, emulator::Wide, float, double>);
    return emulator::atomic(address, [=](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* address, emulator::Value<T> value) {
    static_assert(emulator::is_one_of<T, int, unsigned, long long, emulator::Wide>);
    return emulator::atomic(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, emulator::Value<T> value) {
    static_assert(emulator::is_one_of<T, int, unsigned, long long, emulator::Wide>);
    return emulator::atomic(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* address, emulator::Value<T> value) {
    static_assert(emulator::is_one_of<T, int, unsigned, emulator::Wide, float>);
    return emulator::atomic(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, emulator::Value<T> expected, emulator::Value<T> value) {
    static_assert(emulator::is_one_of<T, int, unsigned, emulator::Wide, unsigned short>);
    return emulator::atomic(address, [=](T old) { return old == expected ? value : old; });
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

using std::max;
using std::min;
