// Sums and maxima over a team of threads: one, a warp, or a whole block. The order is fixed, so that the same values
// give the same bits.
#pragma once

#include "types.cuh"

namespace scratchcuda {

constexpr int warp = 32;
constexpr int block = 512;
constexpr unsigned all_lanes = 0xffffffff;

struct Add {
    template <class A>
    __device__ A operator()(A a, A b) const {
        return a + b;
    }
};

struct Maximum {
    template <class A>
    __device__ A operator()(A a, A b) const {
        return a < b ? b : a;
    }
};

// Combines the values of a team's threads, and gives each of them the result.
template <int team, class A, class F>
__device__ A reduce(A value, F combine, A* shared) {
    if constexpr (team >= warp) {
        for (int step = warp / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(all_lanes, value, step));
    }
    if constexpr (team > warp) {
        if (threadIdx.x % warp == 0) shared[threadIdx.x / warp] = value;
        __syncthreads();
        value = shared[0];
        for (int w = 1; w < team / warp; ++w) value = combine(value, shared[w]);
        __syncthreads();  // before the next call writes
    }
    return value;
}

}  // namespace scratchcuda
