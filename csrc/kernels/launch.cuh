// How a kernel is launched: by this function alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace scratchcuda {

constexpr size_t shared_bytes_without_asking = 48 * 1024;

// Whether a launch may begin while the one before it in the stream ends, on an architecture that can (sm_90):
// programmatic dependent launch. Off until a GPU shows that it gains.
inline bool overlaps = false;

// A kernel, with the size of block and of shared memory that all its launches have.
struct Kernel {
    const void* function;
    int threads;
    size_t shared_bytes;
};

// All that this library can launch, for questions about their resources.
inline std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}

template <auto kernel, int threads, size_t shared_bytes>
struct Registered {
    inline static const bool done =
        (kernels().push_back({reinterpret_cast<const void*>(kernel), threads, shared_bytes}), true);
};

template <auto kernel, int threads, size_t shared_bytes = 0, class... Arguments>
cudaError_t launch(int64_t blocks_x, int64_t blocks_y, cudaStream_t stream, Arguments&&... arguments) {
    static_cast<void>(Registered<kernel, threads, shared_bytes>::done);
    if (blocks_x > 0x7fffffff || blocks_y > 65535)
        return cudaErrorInvalidConfiguration;  // before they are cut to 32 bits
    if constexpr (shared_bytes > shared_bytes_without_asking) {
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
        if (error != cudaSuccess) return error;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute overlap{};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &overlap;
    config.numAttrs = overlaps ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace scratchcuda
