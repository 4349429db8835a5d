// The elementwise activations: of each its name and its formulas, forward and backward, and the list of all. Names,
// ops and kernels follow from the list: a new activation is a struct here, and its place there.
#pragma once

#include <cmath>

#include "launchers.h"
#include "list.cuh"

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

struct Elu : Formula {
    static constexpr const char* name = "elu";
    static constexpr int parameters = 1;  // alpha
    static constexpr bool of_input = true;
    template <class A>
    static __device__ A forward(A z, const A* alpha) {
        return z > 0 ? z : alpha[0] * std::expm1(z);
    }
    template <class A>
    static __device__ A backward(A delta, A z, const A* alpha) {
        return z <= 0 ? delta * alpha[0] * std::exp(z) : delta;
    }
};

struct Softplus : Formula {
    static constexpr const char* name = "softplus";
    static constexpr int parameters = 2;  // beta and the threshold
    static constexpr bool of_input = true;
    template <class A>
    static __device__ A forward(A z, const A* p) {
        return p[0] * z > p[1] ? z : std::log1p(std::exp(p[0] * z)) / p[0];
    }
    template <class A>
    static __device__ A backward(A delta, A z, const A* p) {
        return p[0] * z > p[1] ? delta : delta / (A(1) + std::exp(-p[0] * z));
    }
};

struct Silu : Formula {
    static constexpr const char* name = "silu";
    static constexpr bool of_input = true;
    template <class A>
    static __device__ A forward(A z, const A*) {
        return z / (A(1) + std::exp(-z));
    }
    template <class A>
    static __device__ A backward(A delta, A z, const A*) {
        const A s = A(1) / (A(1) + std::exp(-z));
        return delta * s * (A(1) + z * (A(1) - s));
    }
};

// By erfc, which keeps its digits where 1 + erf loses them.
struct Gelu : Formula {
    static constexpr const char* name = "gelu";
    static constexpr bool of_input = true;
    static constexpr double sqrt_half = 0.70710678118654752440, density = 0.39894228040143267794;  // 1 / sqrt(2 pi)
    template <class A>
    static __device__ A forward(A z, const A*) {
        return A(0.5) * z * std::erfc(A(-sqrt_half) * z);
    }
    template <class A>
    static __device__ A backward(A delta, A z, const A*) {
        return delta * (A(0.5) * std::erfc(A(-sqrt_half) * z) + z * (A(density) * std::exp(A(-0.5) * z * z)));
    }
};

// (1 + tanh(u)) / 2 as 1 / (1 + exp(-2 u)), for the same reason.
struct GeluTanh : Formula {
    static constexpr const char* name = "gelu_tanh";
    static constexpr bool of_input = true;
    static constexpr double slope = 1.59576912160573071176, cubic = 0.044715;  // of 2 u; sqrt(8 / pi)
    template <class A>
    static __device__ A forward(A z, const A*) {
        return z / (A(1) + std::exp(A(-slope) * z * (A(1) + A(cubic) * z * z)));
    }
    template <class A>
    static __device__ A backward(A delta, A z, const A*) {
        const A square = z * z, s = A(1) / (A(1) + std::exp(A(-slope) * z * (A(1) + A(cubic) * square)));
        return delta * s * (A(1) + A(slope) * z * (A(1) - s) * (A(1) + A(3 * cubic) * square));
    }
};

using Activations = List<Relu, Sigmoid, Tanh, LeakyRelu, Elu, Softplus, Silu, Gelu, GeluTanh>;

template <class... F>
constexpr bool have_room(List<F...>) {
    return ((F::parameters <= most_parameters) && ...);
}
static_assert(have_room(Activations{}));

// Whether f's derivative is a formula of its input; none has none.
template <class... F>
bool derives_from_input(const Activation& f, List<F...>) {
    int32_t index = 0;
    return ((f.index == index++ && F::of_input) || ...);
}

// Its parameters as the kernels take them.
template <class A>
struct Parameters {
    A value[most_parameters];

    explicit Parameters(const Activation& f) {
        for (int p = 0; p < most_parameters; ++p) value[p] = static_cast<A>(f.parameters[p]);
    }
};

// An activation that a kernel chooses as it runs, among those whose derivative is in terms of the input, or among the
// others: so neither takes the registers of both. Of none, z and delta stay what they are.
template <class A, bool of_input>
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
        static_cast<void>(((index == i++ && F::of_input == of_input && (body(F{}), true)) || ...));
    }
};

}  // namespace scratchcuda
