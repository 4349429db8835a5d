// The op that takes the batch of a training step.
#include "checks.h"

namespace scratchcuda::ops {
namespace {

// Of one batch, `batch` (m, ...), of samples `all` (samples, ...), which may be class indices if they are y.
void check_part(const std::string& name, const stable::Tensor& all, const stable::Tensor& batch,
                const stable::Tensor& x) {
    check_device(name, all, x, "x");
    const bool classes = name == "y" && all.dim() == 1 && all.scalar_type() == ScalarType::Long;
    if (!classes) check_dtype(name, all);
    if (all.dim() != 1 && all.dim() != 2)
        refuse(name, " has shape ", text(all.sizes()), ", expected one or two dimensions");
    const std::string batch_name = name + "_batch";
    check_alike(batch_name, batch, all, name.c_str());
    Sizes expected(all.sizes().begin(), all.sizes().end());
    if (batch.dim() > 0) expected[0] = batch.size(0);
    check_shape(batch_name, batch, expected);
    if (!batch.is_contiguous())
        refuse(batch_name, " has strides ", text(batch.strides()), ", expected contiguous memory");
}

// x (samples, n_in), y (samples, n_out) or (samples,), order (samples,), step (), x_batch (m, n_in), y_batch (m, ...)
void take_batch_(const stable::Tensor& x, const stable::Tensor& y, const stable::Tensor& order,
                 const stable::Tensor& step, int64_t batch_size, const stable::Tensor& x_batch,
                 const stable::Tensor& y_batch) {
    const Guard guard(x);
    check_part("x", x, x_batch, x);
    check_part("y", y, y_batch, x);
    check_index("order", order, x, "x");
    check_dims("order", order, 1, "(samples,)");
    check_index("step", step, x, "x");
    check_shape("step", step, Sizes{});
    if (x_batch.size(0) != y_batch.size(0)) {
        refuse("y_batch has ", y_batch.size(0), " rows, expected ", x_batch.size(0), " as x_batch");
    }
    if (batch_size < 1) refuse("batch_size is ", batch_size, ", expected a positive integer");
    check_apart({{"x", x, false},
                 {"y", y, false},
                 {"order", order, false},
                 {"step", step, false},
                 {"x_batch", x_batch, true},
                 {"y_batch", y_batch, true}});
    check_here("x", x);
    launched("take_batch_", take_batch(view(x), view(y), view(order), view(step), batch_size, view(x_batch),
                                       view(y_batch), guard.stream));
}

}  // namespace

SCRATCHCUDA_OPS(m) { m.impl("take_batch_", TORCH_BOX(&take_batch_)); }

}  // namespace scratchcuda::ops
