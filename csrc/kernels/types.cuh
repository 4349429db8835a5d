// The four dtypes, and the type each is computed in: 16-bit types are widened to float32, and rounded once at the end.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <cmath>

#include "launchers.h"

namespace scratchcuda {

template <class T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;
inline int64_t accumulator_bytes(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }
inline int64_t element_bytes(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64:
        case Dtype::int64:
            return 8;
        case Dtype::float32:
            return 4;
        default:
            return 2;
    }
}

__device__ inline double widen(double value) { return value; }
__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T narrow(Accumulator<T> value) {
    return value;
}
template <>
__device__ inline __half narrow<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// std::numeric_limits serves the host only.
template <class A>
__device__ A infinity() {
    return HUGE_VAL;
}
template <class A>
__device__ A lowest() {
    return sizeof(A) == 8 ? A(-DBL_MAX) : A(-FLT_MAX);
}

// Elements that move in one access.
template <class T, int count_>
struct alignas(sizeof(T) * count_) Pack {
    static constexpr int count = count_;
    T element[count];
};

template <class T>
constexpr int per_access = 16 / sizeof(T);  // elements of the widest one

// Calls `body` with a value of the C++ type of `dtype`, for the body to take its type.
template <class Body>
cudaError_t dispatch(Dtype dtype, Body body) {
    switch (dtype) {
        case Dtype::float64:
            return body(double{});
        case Dtype::float32:
            return body(float{});
        case Dtype::float16:
            return body(__half{});
        case Dtype::bfloat16:
            return body(__nv_bfloat16{});
        case Dtype::int64:  // of class indices
            break;
    }
    return cudaErrorInvalidValue;
}

}  // namespace scratchcuda
