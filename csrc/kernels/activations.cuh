// The formulas of the elementwise activations, and their derivatives in terms of the output.
#pragma once

#include <cmath>

#include "types.cuh"

namespace scratchcuda {

// relu keeps NaN and -0.0, as torch does. tanh is the library's: (e^z - e^-z) / (e^z + e^-z) overflows.
template <class A>
__device__ A activate(Activation f, A z) {
    switch (f) {
        case Activation::relu:
            return z < 0 ? A(0) : z;
        case Activation::sigmoid:
            return A(1) / (A(1) + std::exp(-z));
        case Activation::tanh:
            return std::tanh(z);
        default:
            return z;
    }
}

template <class A>
__device__ A differentiate(Activation f, A delta, A a) {
    switch (f) {
        case Activation::relu:
            return a <= 0 ? A(0) : delta;
        case Activation::sigmoid:
            return delta * (A(1) - a) * a;
        case Activation::tanh:
            return delta * (A(1) - a * a);
        default:
            return delta;
    }
}

}  // namespace scratchcuda
