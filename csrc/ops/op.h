// What every checked op is made of, in this order: guard, check (checks.h), allocate, launch. The same code serves CUDA
// tensors, as torch.ops.scratchcuda, and CPU tensors on the emulator, in a namespace of its own.
//
// Only the stable part of torch's C++ interface is used, so that one binary serves every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../kernels/launchers.h"

#ifdef SCRATCHCUDA_EMULATOR
#define SCRATCHCUDA_DEVICE CPU
#else
#define SCRATCHCUDA_EMULATOR 0
#define SCRATCHCUDA_NAMESPACE scratchcuda
#define SCRATCHCUDA_DEVICE CUDA
#endif

// SCRATCHCUDA_OPS(m) { m.impl("name", TORCH_BOX(&function)); } serves ops of scratchcuda/ops.
#define SCRATCHCUDA_OPS(m) STABLE_TORCH_LIBRARY_IMPL(SCRATCHCUDA_NAMESPACE, SCRATCHCUDA_DEVICE, m)

namespace scratchcuda::ops {

namespace stable = torch::stable;
using torch::headeronly::ScalarType;
using Sizes = std::vector<int64_t>;
using OptionalTensor = std::optional<stable::Tensor>;

extern Tile tile;  // of products (settings.cpp)

// Makes the device of the op's tensors current while it lives, and knows the stream that is current there.
#if SCRATCHCUDA_EMULATOR
struct Guard {
    explicit Guard(const stable::Tensor&) {}
    cudaStream_t stream = emulator::current_stream();
};
#else
struct Guard {
    explicit Guard(const stable::Tensor& tensor) {
        if (!tensor.is_cuda()) return;  // the checks will refuse it
        device.emplace(tensor.get_device_index());
        void* current = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
        stream = static_cast<cudaStream_t>(current);
    }
    std::optional<stable::accelerator::DeviceGuard> device;
    cudaStream_t stream = nullptr;
};
#endif

// A tensor that the kernels' indices can follow: itself, or a copy if its dimensions are more than they hold.
inline stable::Tensor operand(const stable::Tensor& tensor) {
    constexpr int most_dims = 16;
    return tensor.dim() > most_dims ? stable::contiguous(tensor) : tensor;
}

// An empty contiguous tensor of these sizes, and of the dtype and device of `like`.
inline stable::Tensor empty(const stable::Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
    return stable::new_empty(like, sizes);
}

// An empty tensor as torch's elementwise operations lay out their result: as the first operand that is not expanded.
inline stable::Tensor empty_like(const stable::Tensor& first, const stable::Tensor& second) {
    for (int64_t d = 0; d < first.dim(); ++d) {
        if (first.stride(d) == 0 && first.size(d) > 1) return stable::empty_like(second);
    }
    return stable::empty_like(first);
}

// Memory for a launcher's own use.
inline stable::Tensor workspace(const stable::Tensor& like, int64_t bytes) {
    return stable::new_empty(like, Sizes{bytes}, ScalarType::Byte);
}

// As the kernels see a tensor, while it lives. Its dtype has been checked.
inline Tensor view(const stable::Tensor& tensor) {
    Dtype dtype = Dtype::float64;
    switch (tensor.scalar_type()) {
        case ScalarType::Float:
            dtype = Dtype::float32;
            break;
        case ScalarType::Half:
            dtype = Dtype::float16;
            break;
        case ScalarType::BFloat16:
            dtype = Dtype::bfloat16;
            break;
        case ScalarType::Long:
            dtype = Dtype::int64;
            break;
        default:
            break;
    }
    return {tensor.data_ptr(), dtype, static_cast<int32_t>(tensor.dim()), tensor.sizes().data(),
            tensor.strides().data()};
}

// A view of what may not be there, and how launchers take it.
struct OptionalView {
    explicit OptionalView(const OptionalTensor& tensor) {
        if (tensor) seen = view(*tensor);
    }
    const Tensor* get() const { return seen ? &*seen : nullptr; }
    std::optional<Tensor> seen;
};

// Throws what a launcher has returned, unless that is success. Without a last error, it is a launcher's own refusal.
inline void launched(const char* op, cudaError_t error) {
    if (error == cudaSuccess) return;
    const char* reason = "a grid of more blocks than there can be";
    if (cudaGetLastError() != cudaSuccess) {
        reason = cudaGetErrorString(error);
    } else if (error == cudaErrorInvalidValue) {
        reason = "a tensor has more than 16 dimensions that cannot be merged";
    }
    throw std::runtime_error(std::string(op) + " failed, " + cudaGetErrorName(error) + ": " + reason);
}

}  // namespace scratchcuda::ops
