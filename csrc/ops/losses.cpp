// The losses' ops: each gives the loss () and its gradient with respect to the first tensor.
#include "checks.h"

namespace scratchcuda::ops {
namespace {

// y_pred, y_true of one shape
std::tuple<stable::Tensor, stable::Tensor> mse(const stable::Tensor& y_pred, const stable::Tensor& y_true) {
    const Guard guard(y_pred);
    check_dtype("y_pred", y_pred);
    check_alike("y_true", y_true, y_pred, "y_pred");
    check_shape("y_true", y_true, y_pred.sizes());
    check_here("y_pred", y_pred);
    const auto predictions = operand(y_pred), targets = operand(y_true);
    auto loss = empty(y_pred, Sizes{}), gradient = empty_like(predictions, targets);
    const auto partials = workspace(y_pred, mse_workspace_bytes(view(predictions)));
    launched("mse", scratchcuda::mse(view(predictions), view(targets), view(loss), view(gradient), partials.data_ptr(),
                                     guard.stream));
    return {loss, gradient};
}

// scores (m, classes), y_true (m, classes) or class indices (m,) of int64
std::tuple<stable::Tensor, stable::Tensor> cross_entropy(const stable::Tensor& scores, const stable::Tensor& y_true) {
    const Guard guard(scores);
    check_dtype("scores", scores);
    check_dims("scores", scores, 2, "(m, classes)");
    if (y_true.dim() == 1) {
        if (y_true.scalar_type() != ScalarType::Long) {
            refuse("y_true has dtype ", text(y_true.scalar_type()), ", expected torch.int64 for class indices");
        }
        check_shape("y_true", y_true, Sizes{scores.size(0)});
    } else {
        check_dtype("y_true", y_true, scores.scalar_type(), "scores");
        check_shape("y_true", y_true, scores.sizes());
    }
    check_device("y_true", y_true, scores, "scores");
    check_here("scores", scores);
    auto loss = empty(scores, Sizes{}), gradient = empty(scores, scores.sizes());
    const auto partials = workspace(scores, cross_entropy_workspace_bytes(view(scores)));
    launched("cross_entropy", scratchcuda::cross_entropy(view(scores), view(y_true), view(loss), view(gradient),
                                                         partials.data_ptr(), guard.stream));
    return {loss, gradient};
}

}  // namespace

SCRATCHCUDA_OPS(m) {
    m.impl("mse", TORCH_BOX(&mse));
    m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
}

}  // namespace scratchcuda::ops
