// Dropout with the noise given: out = x * noise, in which the noise is 0 with probability p and 1 / (1 - p) otherwise;
// x is an input, or, backward, the gradient with respect to the output.
//
// Threads: each takes 16 bytes of elements: consecutive ones, in one access to each tensor, where all of them are one
// aligned run of memory in the same order; otherwise element by element at computed offsets, neighbours in a warp.
// Least work for n elements of s bytes: 3 n s bytes moved, one operation an element, so the memory is the limit.

#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "types.cuh"

namespace scratchcuda {

constexpr int dropout_threads = 256;

template <class T>
__global__ void __launch_bounds__(dropout_threads)
    multiply_noise(const T* x, const T* noise, T* out, const __grid_constant__ Elements<3> elements) {
    overlap_launches();
    take_block<T, dropout_threads>(elements, blockIdx.x, [&](auto pack, const auto& at) {
        using Packed = decltype(pack);
        Packed values = *reinterpret_cast<const Packed*>(x + at[0]);
        const Packed factors = *reinterpret_cast<const Packed*>(noise + at[1]);
        for (int e = 0; e < Packed::count; ++e) {
            values.element[e] = narrow<T>(widen(values.element[e]) * widen(factors.element[e]));
        }
        *reinterpret_cast<Packed*>(out + at[2]) = values;
    });
}

cudaError_t dropout(Tensor x, Tensor noise, Tensor out, cudaStream_t stream) {
    Elements<3> elements;
    if (!as_elements({x, noise, out}, elements)) return cudaErrorInvalidValue;
    if (elements.length == 0) return cudaSuccess;
    return dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        const int64_t block = dropout_threads * per_access<T>;
        return launch<multiply_noise<T>, dropout_threads>(
            (elements.length + block - 1) / block, 1, stream, static_cast<const T*>(x.data),
            static_cast<const T*>(noise.data), static_cast<T*>(out.data), elements);
    });
}

}  // namespace scratchcuda
