// The elementwise activations: of each its name and its formulas, forward and backward, and the list of all. Names,
// ops and kernels follow from the list: a new activation is a struct here, and its place there.
#pragma once

#include <cmath>
#include <type_traits>

#include "launchers.h"

namespace scratchcuda {

// What an activation may say otherwise.
struct Formula {
    static constexpr int parameters = 0;        // of the formulas, in their order
    static constexpr bool of_input = false;     // the derivative is that at the input z, else in terms of the output a
    static constexpr bool value_first = false;  // z or a is the first operand of torch's backward, which lays out dz
};

// Keeps NaN and -0.0, as torch does.
struct Relu : Formula {
    static constexpr const char* name = "relu";
    static constexpr bool value_first = true;
    template <class A>
    static __device__ A forward(A z, const A*) {
        return z < 0 ? A(0) : z;
    }
    template <class A>
    static __device__ A backward(A delta, A a, const A*) {
        return a <= 0 ? A(0) : delta;
    }
};

struct Sigmoid : Formula {
    static constexpr const char* name = "sigmoid";
    template <class A>
    static __device__ A forward(A z, const A*) {
        return A(1) / (A(1) + std::exp(-z));
    }
    template <class A>
    static __device__ A backward(A delta, A a, const A*) {
        return delta * (A(1) - a) * a;
    }
};

// The library's: (e^z - e^-z) / (e^z + e^-z) overflows.
struct Tanh : Formula {
    static constexpr const char* name = "tanh";
    template <class A>
    static __device__ A forward(A z, const A*) {
        return std::tanh(z);
    }
    template <class A>
    static __device__ A backward(A delta, A a, const A*) {
        return delta * (A(1) - a * a);
    }
};

struct LeakyRelu : Formula {
    static constexpr const char* name = "leaky_relu";
    static constexpr int parameters = 1;  // the slope below 0
    static constexpr bool value_first = true;
    template <class A>
    static __device__ A forward(A z, const A* slope) {
        return z > 0 ? z : slope[0] * z;
    }
    template <class A>
    static __device__ A backward(A delta, A a, const A* slope) {
        return a > 0 ? delta : slope[0] * delta;
    }
};

template <class... F>
struct List {
    static_assert(((F::parameters <= most_parameters) && ...));
};
using Activations = List<Relu, Sigmoid, Tanh, LeakyRelu>;

template <class F, class... Others>
constexpr int32_t index_of(List<Others...>) {
    int32_t index = 0;
    static_cast<void>(((std::is_same_v<F, Others> || (++index, false)) || ...));
    return index;
}

// Its parameters as the kernels take them.
template <class A>
struct Parameters {
    A value[most_parameters];

    explicit Parameters(const Activation& f) {
        for (int p = 0; p < most_parameters; ++p) value[p] = static_cast<A>(f.parameters[p]);
    }
};

// An activation that a kernel chooses as it runs; of none, z and delta stay what they are.
template <class A>
struct Chosen {
    int32_t index;
    Parameters<A> parameters;

    explicit Chosen(const Activation& f) : index(f.index), parameters(f) {}

    __device__ A forward(A z) const {
        visit(Activations{}, [&](auto f) { z = f.forward(z, parameters.value); });
        return z;
    }
    __device__ A backward(A delta, A value) const {
        visit(Activations{}, [&](auto f) { delta = f.backward(delta, value, parameters.value); });
        return delta;
    }

  private:
    template <class Body, class... F>
    __device__ void visit(List<F...>, Body body) const {
        int32_t i = 0;
        static_cast<void>(((index == i++ && (body(F{}), true)) || ...));
    }
};

}  // namespace scratchcuda
