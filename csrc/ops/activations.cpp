// The activations' ops: elementwise, and softmax over a dimension.
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

// The tensor with this dimension in the place of its last.
stable::Tensor along(const stable::Tensor& tensor, int64_t dim) {
    const int64_t last = tensor.dim() - 1;
    return dim == -1 || dim == last || last < 0 ? tensor : stable::transpose(tensor, dim, last);
}

void check_dim(int64_t dim, const stable::Tensor& tensor) {
    const int64_t dims = std::max<int64_t>(1, tensor.dim());
    if (dim < -dims || dim >= dims)
        refuse("dim is ", dim, ", expected one of the ", dims, " of ", text(tensor.sizes()));
}

stable::Tensor softmax(const stable::Tensor& z, int64_t dim) {
    const Guard guard(z);
    check_dim(dim, z);
    const auto in = along(checked(z), dim);
    auto a = empty(z, z.sizes());
    const auto out = along(a, dim);
    launched("softmax", softmax_forward(view(in), view(out), guard.stream));
    return a;
}

stable::Tensor softmax_backward(const stable::Tensor& delta, const stable::Tensor& a, int64_t dim) {
    const Guard guard(delta);
    check_dim(dim, delta);
    const auto [gradient, output] = checked(delta, a);
    const auto gradients = along(gradient, dim), outputs = along(output, dim);
    auto dz = empty(delta, delta.sizes());
    const auto out = along(dz, dim);
    launched("softmax_backward",
             scratchcuda::softmax_backward(view(gradients), view(outputs), view(out), guard.stream));
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
