// Dropout's op, which draws nothing: an input or a gradient times the noise that is given.
#include "checks.h"

namespace scratchcuda::ops {
namespace {

// x, noise of one shape
stable::Tensor dropout(const stable::Tensor& x, const stable::Tensor& noise) {
    const Guard guard(x);
    check_dtype("x", x);
    check_alike("noise", noise, x, "x");
    check_shape("noise", noise, x.sizes());
    check_here("x", x);
    const auto in = operand(x), factors = operand(noise);
    auto out = empty_like(in, factors);
    launched("dropout", scratchcuda::dropout(view(in), view(factors), view(out), guard.stream));
    return out;
}

}  // namespace

SCRATCHCUDA_OPS(m) { m.impl("dropout", TORCH_BOX(&dropout)); }

}  // namespace scratchcuda::ops
