// Elementwise activations: a = f(z), and backward dz = delta f'(z), where f' is written in terms of a.
//
// Threads: each takes 16 bytes of elements: consecutive ones, in one access to each tensor, where all of them are one
// aligned run of memory in the same order; otherwise element by element at computed offsets, neighbours in a warp.
// Least work for n elements of s bytes: forward moves 2 n s bytes, backward 3 n s; a few operations an element (an
// exponential for sigmoid and tanh), so the memory is the limit.

#include "activations.cuh"
#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"

namespace scratchcuda {

constexpr int elementwise_threads = 256;

// f takes one value of each input and gives the output's.
template <class T, int inputs, class F>
struct Elementwise {
    const T* in[inputs];
    T* out;
    Elements<inputs + 1> elements;
    bool packed;
    F f;
};

template <class T, int inputs, class F>
__global__ void __launch_bounds__(elementwise_threads)
    elementwise(const __grid_constant__ Elementwise<T, inputs, F> call) {
    constexpr int count = per_access<T>, threads = elementwise_threads;
    using Packed = Pack<T, count>;
    overlap_launches();
    const int64_t block_first = int64_t(blockIdx.x) * threads * count;
    const int64_t first = block_first + threadIdx.x * (call.packed ? count : 1);
    if (call.packed && first + count <= call.elements.length) {
        Packed in[inputs], out;
        for (int t = 0; t < inputs; ++t) in[t] = *reinterpret_cast<const Packed*>(call.in[t] + first);
        for (int e = 0; e < count; ++e) {
            Accumulator<T> values[inputs];
            for (int t = 0; t < inputs; ++t) values[t] = widen(in[t].element[e]);
            out.element[e] = narrow<T>(call.f(values));
        }
        *reinterpret_cast<Packed*>(call.out + first) = out;
        return;
    }
    for (int e = 0; e < count; ++e) {
        const int64_t i = first + e * (call.packed ? 1 : threads);
        if (i >= call.elements.length) return;
        int64_t at[inputs + 1];
        call.elements.offsets(i, at);
        Accumulator<T> values[inputs];
        for (int t = 0; t < inputs; ++t) values[t] = widen(call.in[t][at[t]]);
        call.out[at[inputs]] = narrow<T>(call.f(values));
    }
}

struct Forward {
    Activation activation;
    template <class A>
    __device__ A operator()(const A (&z)[1]) const {
        return activate(activation, z[0]);
    }
};

struct Backward {
    Activation activation;
    template <class A>
    __device__ A operator()(const A (&delta_and_a)[2]) const {
        return differentiate(activation, delta_and_a[0], delta_and_a[1]);
    }
};

// The output is the last of the tensors.
template <int inputs, class F>
cudaError_t launch_elementwise(const Tensor (&tensors)[inputs + 1], F f, cudaStream_t stream) {
    Elements<inputs + 1> elements;
    if (!as_elements(tensors, elements)) return cudaErrorInvalidValue;
    if (elements.length == 0) return cudaSuccess;
    return dispatch(tensors[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Elementwise<T, inputs, F> call{{}, static_cast<T*>(tensors[inputs].data), elements, elements.contiguous(), f};
        for (int t = 0; t < inputs; ++t) call.in[t] = static_cast<const T*>(tensors[t].data);
        for (const Tensor& tensor : tensors) call.packed &= reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
        const int64_t block = elementwise_threads * per_access<T>;
        const int64_t blocks = (elements.length + block - 1) / block;
        return launch<elementwise<T, inputs, F>, elementwise_threads>(blocks, 1, stream, call);
    });
}

cudaError_t activation_forward(Tensor z, Tensor a, Activation f, cudaStream_t stream) {
    return launch_elementwise<1>({z, a}, Forward{f}, stream);
}

cudaError_t activation_backward(Tensor delta, Tensor a, Tensor dz, Activation f, cudaStream_t stream) {
    return launch_elementwise<2>({delta, a, dz}, Backward{f}, stream);
}

}  // namespace scratchcuda
