// Elementwise activations: a = f(z), and backward dz = delta f'(z), where f' is a formula of a, or of z. Each
// activation has kernels of its own, which take the registers of its formulas alone.
//
// Threads: each takes 16 bytes of elements: consecutive ones, in one access to each tensor, where all of them are one
// aligned run of memory in the same order; otherwise element by element at computed offsets, neighbours in a warp.
// Least work for n elements of s bytes: forward moves 2 n s bytes, backward 3 n s; a few operations an element (an
// exponential for sigmoid and tanh), so the memory is the limit.

#include "activations.cuh"
#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "types.cuh"

namespace scratchcuda {

constexpr int elementwise_threads = 256;

template <class T, int inputs>
struct Elementwise {
    const T* in[inputs];
    T* out;
    Elements<inputs + 1> elements;
    Parameters<Accumulator<T>> parameters;
};

// F::apply takes one value of each input and gives the output's.
template <class T, int inputs, class F>
__global__ void __launch_bounds__(elementwise_threads)
    elementwise(const __grid_constant__ Elementwise<T, inputs> call) {
    overlap_launches();
    take_block<T, elementwise_threads>(call.elements, blockIdx.x, [&](auto pack, const auto& at) {
        using Packed = decltype(pack);
        Packed in[inputs], out;
        for (int t = 0; t < inputs; ++t) in[t] = *reinterpret_cast<const Packed*>(call.in[t] + at[t]);
        for (int e = 0; e < Packed::count; ++e) {
            Accumulator<T> values[inputs];
            for (int t = 0; t < inputs; ++t) values[t] = widen(in[t].element[e]);
            out.element[e] = narrow<T>(F::apply(values, call.parameters.value));
        }
        *reinterpret_cast<Packed*>(call.out + at[inputs]) = out;
    });
}

template <class F>
struct Forward {
    template <class A>
    static __device__ A apply(const A (&z)[1], const A* parameters) {
        return F::forward(z[0], parameters);
    }
};

template <class F>
struct Backward {
    template <class A>
    static __device__ A apply(const A (&delta_and_value)[2], const A* parameters) {
        return F::backward(delta_and_value[0], delta_and_value[1], parameters);
    }
};

// Launches the kernel of Pass<f>. The output is the last of the tensors.
template <template <class> class Pass, int inputs, class... F>
cudaError_t launch_elementwise(const Tensor (&tensors)[inputs + 1], const Activation& f, List<F...>,
                               cudaStream_t stream) {
    Elements<inputs + 1> elements;
    if (!as_elements(tensors, elements)) return cudaErrorInvalidValue;
    if (elements.length == 0) return cudaSuccess;
    return dispatch(tensors[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Elementwise<T, inputs> call{{}, static_cast<T*>(tensors[inputs].data), elements, Parameters<Accumulator<T>>(f)};
        for (int t = 0; t < inputs; ++t) call.in[t] = static_cast<const T*>(tensors[t].data);
        const int64_t block = elementwise_threads * per_access<T>;
        const int64_t blocks = (elements.length + block - 1) / block;
        cudaError_t (*const launches[])(int64_t, int64_t, cudaStream_t, Elementwise<T, inputs>&) = {
            launch<elementwise<T, inputs, Pass<F>>, elementwise_threads>...};
        return launches[f.index](blocks, 1, stream, call);
    });
}

cudaError_t activation_forward(Tensor z, Tensor a, Activation f, cudaStream_t stream) {
    return launch_elementwise<Forward, 1>({z, a}, f, Activations{}, stream);
}

cudaError_t activation_backward(Tensor delta, Tensor value, Tensor dz, Activation f, cudaStream_t stream) {
    return launch_elementwise<Backward, 2>({delta, value, dz}, f, Activations{}, stream);
}

}  // namespace scratchcuda
