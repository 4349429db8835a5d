// The activations' ops: elementwise, and softmax over the last dimension.
#include "checks.h"

namespace scratchcuda::ops {
namespace {

constexpr const char* names[] = {"", "relu", "sigmoid", "tanh"};
constexpr const char* backward_names[] = {"", "relu_backward", "sigmoid_backward", "tanh_backward"};

stable::Tensor checked(const stable::Tensor& z) {
    check_dtype("z", z);
    check_here("z", z);
    return operand(z);
}

std::tuple<stable::Tensor, stable::Tensor> checked(const stable::Tensor& delta, const stable::Tensor& a) {
    check_dtype("delta", delta);
    check_alike("a", a, delta, "delta");
    check_shape("a", a, delta.sizes());
    check_here("delta", delta);
    return {operand(delta), operand(a)};
}

template <Activation f>
stable::Tensor forward(const stable::Tensor& z) {
    const Guard guard(z);
    const auto in = checked(z);
    auto a = stable::empty_like(in);
    launched(names[static_cast<int>(f)], activation_forward(view(in), view(a), f, guard.stream));
    return a;
}

template <Activation f>
stable::Tensor backward(const stable::Tensor& delta, const stable::Tensor& a) {
    const Guard guard(delta);
    const auto [gradient, output] = checked(delta, a);
    // As torch: its operand that comes first is a for relu, delta for the others.
    auto dz = f == Activation::relu ? empty_like(output, gradient) : empty_like(gradient, output);
    launched(backward_names[static_cast<int>(f)],
             activation_backward(view(gradient), view(output), view(dz), f, guard.stream));
    return dz;
}

stable::Tensor softmax(const stable::Tensor& z) {
    const Guard guard(z);
    const auto in = checked(z);
    auto a = empty(in, in.sizes());
    launched("softmax", softmax_forward(view(in), view(a), guard.stream));
    return a;
}

stable::Tensor softmax_backward(const stable::Tensor& delta, const stable::Tensor& a) {
    const Guard guard(delta);
    const auto [gradient, output] = checked(delta, a);
    auto dz = empty(gradient, gradient.sizes());
    launched("softmax_backward", scratchcuda::softmax_backward(view(gradient), view(output), view(dz), guard.stream));
    return dz;
}

}  // namespace

SCRATCHCUDA_OPS(m) {
    m.impl("relu", TORCH_BOX(&forward<Activation::relu>));
    m.impl("sigmoid", TORCH_BOX(&forward<Activation::sigmoid>));
    m.impl("tanh", TORCH_BOX(&forward<Activation::tanh>));
    m.impl("softmax", TORCH_BOX(&softmax));
    m.impl("relu_backward", TORCH_BOX(&backward<Activation::relu>));
    m.impl("sigmoid_backward", TORCH_BOX(&backward<Activation::sigmoid>));
    m.impl("tanh_backward", TORCH_BOX(&backward<Activation::tanh>));
    m.impl("softmax_backward", TORCH_BOX(&softmax_backward));
}

}  // namespace scratchcuda::ops
