// The elementwise activations' ops, a pair for each that activations.cuh lists.
#include "../kernels/activations.cuh"

#include <utility>

#include "checks.h"

namespace scratchcuda::ops {
namespace {

template <size_t>
using Number = double;

// Their last arguments are the activation's parameters.
template <class F, class Places = std::make_index_sequence<F::parameters>>
struct Pair;

template <class F, size_t... p>
struct Pair<F, std::index_sequence<p...>> {
    static constexpr int32_t index = index_of<F>(Activations{});

    static stable::Tensor forward(const stable::Tensor& z, Number<p>... parameters) {
        const Guard guard(z);
        const auto in = checked(z);
        auto a = stable::empty_like(in);
        launched(F::name, activation_forward(view(in), view(a), {index, {parameters...}}, guard.stream));
        return a;
    }

    static const char* backward_name() {
        static const std::string name = std::string(F::name) + "_backward";
        return name.c_str();
    }

    static stable::Tensor backward(const stable::Tensor& delta, const stable::Tensor& value, Number<p>... parameters) {
        const Guard guard(delta);
        const auto [gradient, in] = checked(delta, value, F::of_input ? "z" : "a");
        auto dz = F::value_first ? empty_like(in, gradient) : empty_like(gradient, in);
        launched(backward_name(),
                 activation_backward(view(gradient), view(in), view(dz), {index, {parameters...}}, guard.stream));
        return dz;
    }
};

template <class Library, class... F>
void add(Library& library, List<F...>) {
    (library.impl(F::name, TORCH_BOX(&Pair<F>::forward)), ...);
    (library.impl(Pair<F>::backward_name(), TORCH_BOX(&Pair<F>::backward)), ...);
}

}  // namespace

SCRATCHCUDA_OPS(m) { add(m, Activations{}); }

}  // namespace scratchcuda::ops
