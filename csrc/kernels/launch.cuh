// How a kernel is launched: by this function alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

namespace scratchcuda {

constexpr size_t shared_bytes_without_asking = 48 * 1024;

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks_x, int64_t blocks_y, unsigned threads,
                   size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
    if (blocks_x > 0x7fffffff || blocks_y > 65535)
        return cudaErrorInvalidConfiguration;  // before they are cut to 32 bits
    if (shared_bytes > shared_bytes_without_asking) {
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
        if (error != cudaSuccess) return error;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace scratchcuda
