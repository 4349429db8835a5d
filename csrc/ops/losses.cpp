// The losses' ops: each gives the loss () and its gradient with respect to the first tensor; in a training step the
// gradient alone.
#include "checks.h"

namespace scratchcuda::ops {
namespace {

// Where the loss of a training step goes: to losses[step], and step is incremented.
struct Place {
    const stable::Tensor &losses, &step;
};

void check_place(const Place& place, const stable::Tensor& like, const char* name) {
    check_alike("losses", place.losses, like, name);
    check_dims("losses", place.losses, 1, "(steps,)");
    check_writable("losses", place.losses);
    check_index("step", place.step, like, name);
    check_shape("step", place.step, Sizes{});
}

// y_pred, y_true of one shape
std::tuple<stable::Tensor, stable::Tensor> mse_to(const stable::Tensor& y_pred, const stable::Tensor& y_true,
                                                  const Place* place) {
    const Guard guard(y_pred);
    check_dtype("y_pred", y_pred);
    check_alike("y_true", y_true, y_pred, "y_pred");
    check_shape("y_true", y_true, y_pred.sizes());
    if (place) check_place(*place, y_pred, "y_pred");
    check_here("y_pred", y_pred);
    const auto predictions = operand(y_pred), targets = operand(y_true);
    const auto loss = place ? place->losses : empty(y_pred, Sizes{});
    auto gradient = empty_like(predictions, targets);
    const auto partials = workspace(y_pred, mse_workspace_bytes(view(predictions)));
    const Tensor step = view(place ? place->step : loss);
    launched("mse", scratchcuda::mse(view(predictions), view(targets), view(loss), place ? &step : nullptr,
                                     view(gradient), partials.data_ptr(), guard.stream));
    return {loss, gradient};
}

// scores (m, classes), y_true (m, classes) or class indices (m,) of int64
std::tuple<stable::Tensor, stable::Tensor> cross_entropy_to(const stable::Tensor& scores, const stable::Tensor& y_true,
                                                            const std::optional<int64_t>& ignore_index,
                                                            const Place* place) {
    const Guard guard(scores);
    check_dtype("scores", scores);
    check_dims("scores", scores, 2, "(m, classes)");
    if (y_true.dim() == 1) {
        check_index("y_true", y_true, scores, "scores");
        check_shape("y_true", y_true, Sizes{scores.size(0)});
    } else {
        check_alike("y_true", y_true, scores, "scores");
        check_shape("y_true", y_true, scores.sizes());
        if (ignore_index) refuse("ignore_index is ", *ignore_index, ", expected None with probabilities");
    }
    if (place) check_place(*place, scores, "scores");
    check_here("scores", scores);
    const auto loss = place ? place->losses : empty(scores, Sizes{});
    auto gradient = empty(scores, scores.sizes());
    const int64_t* const ignored = ignore_index ? &*ignore_index : nullptr;
    const auto partials = workspace(scores, cross_entropy_workspace_bytes(view(scores), ignored));
    const Tensor step = view(place ? place->step : loss);
    launched("cross_entropy",
             scratchcuda::cross_entropy(view(scores), view(y_true), ignored, view(loss), place ? &step : nullptr,
                                        view(gradient), partials.data_ptr(), guard.stream));
    return {loss, gradient};
}

std::tuple<stable::Tensor, stable::Tensor> mse(const stable::Tensor& y_pred, const stable::Tensor& y_true) {
    return mse_to(y_pred, y_true, nullptr);
}

std::tuple<stable::Tensor, stable::Tensor> cross_entropy(const stable::Tensor& scores, const stable::Tensor& y_true,
                                                         const std::optional<int64_t>& ignore_index) {
    return cross_entropy_to(scores, y_true, ignore_index, nullptr);
}

// losses (steps,), step ()
stable::Tensor mse_step_(const stable::Tensor& y_pred, const stable::Tensor& y_true, const stable::Tensor& losses,
                         const stable::Tensor& step) {
    const Place place{losses, step};
    return std::get<1>(mse_to(y_pred, y_true, &place));
}

stable::Tensor cross_entropy_step_(const stable::Tensor& scores, const stable::Tensor& y_true,
                                   const stable::Tensor& losses, const stable::Tensor& step) {
    const Place place{losses, step};
    return std::get<1>(cross_entropy_to(scores, y_true, std::nullopt, &place));
}

}  // namespace

SCRATCHCUDA_OPS(m) {
    m.impl("mse", TORCH_BOX(&mse));
    m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
    m.impl("mse_step_", TORCH_BOX(&mse_step_));
    m.impl("cross_entropy_step_", TORCH_BOX(&cross_entropy_step_));
}

}  // namespace scratchcuda::ops
