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
    }
    if (place) check_place(*place, scores, "scores");
    check_here("scores", scores);
    const auto loss = place ? place->losses : empty(scores, Sizes{});
    auto gradient = empty(scores, scores.sizes());
    const auto partials = workspace(scores, cross_entropy_workspace_bytes(view(scores)));
    const Tensor step = view(place ? place->step : loss);
    launched("cross_entropy",
             scratchcuda::cross_entropy(view(scores), view(y_true), view(loss), place ? &step : nullptr, view(gradient),
                                        partials.data_ptr(), guard.stream));
    return {loss, gradient};
}

using Loss = decltype(mse_to);

template <Loss* loss>
std::tuple<stable::Tensor, stable::Tensor> alone(const stable::Tensor& y_pred, const stable::Tensor& y_true) {
    return loss(y_pred, y_true, nullptr);
}

// losses (steps,), step ()
template <Loss* loss>
stable::Tensor of_step(const stable::Tensor& y_pred, const stable::Tensor& y_true, const stable::Tensor& losses,
                       const stable::Tensor& step) {
    const Place place{losses, step};
    return std::get<1>(loss(y_pred, y_true, &place));
}

}  // namespace

SCRATCHCUDA_OPS(m) {
    m.impl("mse", TORCH_BOX(&alone<mse_to>));
    m.impl("cross_entropy", TORCH_BOX(&alone<cross_entropy_to>));
    m.impl("mse_step_", TORCH_BOX(&of_step<mse_to>));
    m.impl("cross_entropy_step_", TORCH_BOX(&of_step<cross_entropy_to>));
}

}  // namespace scratchcuda::ops
