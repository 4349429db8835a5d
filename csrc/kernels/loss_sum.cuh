// How a loss becomes one number: each block adds what its threads have summed, and a second kernel, of one block, adds
// the blocks' sums in order; the number of blocks is a matter of shape alone, so that a shape has the same sums
// everywhere.
#pragma once

#include "instructions.cuh"
#include "launch.cuh"
#include "reduce.cuh"

namespace scratchcuda {

constexpr int64_t most_blocks = 1024;

// One loss, or, with a step, that step's among the losses of an epoch; then the step is done. One thread comes here.
// Null if no sum is asked for.
template <class T>
struct LossPlace {
    T* loss;
    int64_t length, stride;
    int64_t* step;

    __device__ void store(T value) const {
        const int64_t at = step ? (*step)++ : 0;
        if (at < length) loss[at * stride] = value;
    }
};

template <class T>
LossPlace<T> place_of(const Tensor& loss, const Tensor* step) {
    T* const data = static_cast<T*>(loss.data);
    if (!step) return {data, 1, 0, nullptr};
    return {data, loss.size[0], loss.stride[0], static_cast<int64_t*>(step->data)};
}

// Where the blocks' sums of a loss go: to its place, if there is one block.
template <class T>
struct LossSum {
    using A = Accumulator<T>;
    LossPlace<T> place;
    A* partials;
    A all;             // terms; the loss is the mean of
    const A* counted;  // these, if not null, and otherwise of all

    __device__ A count() const { return counted ? *counted : all; }

    __device__ void add_block(A sum) const {
        if (gridDim.x == 1) {
            place.store(narrow<T>(sum / count()));
        } else {
            partials[blockIdx.x] = sum;
        }
    }
};

template <class T>
__global__ void __launch_bounds__(block) add_blocks(const __grid_constant__ LossSum<T> loss, int blocks) {
    using A = Accumulator<T>;
    overlap_launches();
    SharedMemory memory;
    A sum = 0;
    for (int b = threadIdx.x; b < blocks; b += block) sum += loss.partials[b];
    sum = reduce<block>(sum, Add{}, memory.take<A>(block / warp));
    if (threadIdx.x == 0) loss.add_block(sum);
}

inline int64_t partial_sums(int64_t blocks) { return blocks > 1 ? blocks : 0; }

// Launches `kernel`, and what adds its blocks' sums, if they are asked for.
template <class T, auto kernel, int threads, class Call>
cudaError_t launch_loss(const Call& call, int64_t blocks, cudaStream_t stream) {
    constexpr size_t warp_bytes = sizeof(Accumulator<T>);
    const cudaError_t error = launch<kernel, threads, threads / warp * warp_bytes>(blocks, 1, stream, call);
    if (error != cudaSuccess || blocks == 1 || !call.loss.place.loss) return error;
    return launch<add_blocks<T>, block, block / warp * warp_bytes>(1, 1, stream, call.loss, static_cast<int>(blocks));
}

}  // namespace scratchcuda
