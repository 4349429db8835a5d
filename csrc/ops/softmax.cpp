// The ops of softmax, over any dimension.
#include "checks.h"

namespace scratchcuda::ops {
namespace {

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
    const auto [gradient, output] = checked(delta, a, "a");
    const auto gradients = along(gradient, dim), outputs = along(output, dim);
    auto dz = empty(delta, delta.sizes());
    const auto out = along(dz, dim);
    launched("softmax_backward",
             scratchcuda::softmax_backward(view(gradients), view(outputs), view(out), guard.stream));
    return dz;
}

}  // namespace

SCRATCHCUDA_OPS(m) {
    m.impl("softmax", TORCH_BOX(&softmax));
    m.impl("softmax_backward", TORCH_BOX(&softmax_backward));
}

}  // namespace scratchcuda::ops
