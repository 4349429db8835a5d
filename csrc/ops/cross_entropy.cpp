// Cross-entropy's ops: the loss; its gradient with respect to the scores, from that with respect to the loss; and both
// of the mean in one, in a training step the gradient alone.
#include "place.h"

namespace scratchcuda::ops {
namespace {

// What all of them take, checked, and as the kernels see it while it lives: scores (m, classes), (n, classes, d...) or
// (classes,), y_true of their shape or class indices of int64.
class Targets {
  public:
    Targets(const stable::Tensor& scores, const stable::Tensor& y_true, const std::optional<int64_t>& ignore_index,
            const OptionalTensor& class_weights, const OptionalTensor& sample_weights, double label_smoothing)
        : scores(operand(scores)),
          y_true(y_true),
          ignored(ignore_index),
          by_class(class_weights),
          by_row(sample_weights) {
        check_dtype("scores", scores);
        if (scores.dim() == 0) refuse("scores has shape (), expected (m, classes), (n, classes, d...) or (classes,)");
        const int64_t along = std::min<int64_t>(1, scores.dim() - 1);
        for (int64_t d = 0; d < scores.dim(); ++d) {
            if (d != along) rows.push_back(scores.size(d));
        }
        if (y_true.dim() == scores.dim() - 1) {
            check_index("y_true", y_true, scores, "scores");
            check_shape("y_true", y_true, rows);
            if (y_true.dim() > 1) this->y_true = stable::contiguous(y_true);
        } else {
            check_alike("y_true", y_true, scores, "scores");
            check_shape("y_true", y_true, scores.sizes());
            if (ignored) refuse("ignore_index is ", *ignored, ", expected None with probabilities");
            this->y_true = operand(y_true);
        }
        check_weights("class_weights", class_weights, Sizes{scores.size(along)});
        check_weights("sample_weights", sample_weights, rows);
        if (!(0 <= label_smoothing && label_smoothing <= 1))
            refuse("label_smoothing is ", label_smoothing, ", expected a number from 0 to 1");
        options = {ignored ? &*ignored : nullptr, by_class.get(), by_row.get(), label_smoothing};
    }
    Targets(const Targets&) = delete;

    void launch(const LossCall& asks, const Guard& guard) const {
        const Tensor z = view(scores), t = view(y_true);
        const auto partials = workspace(scores, cross_entropy_workspace_bytes(z, t, options, asks));
        launched("cross_entropy", scratchcuda::cross_entropy(z, t, options, asks, partials.data_ptr(), guard.stream));
    }

    const stable::Tensor scores;
    Sizes rows;  // the sizes of scores without the classes

  private:
    void check_weights(const char* name, const OptionalTensor& weights, const Sizes& sizes) const {
        if (!weights) return;
        check_alike(name, *weights, scores, "scores");
        check_shape(name, *weights, sizes);
    }

    stable::Tensor y_true;
    std::optional<int64_t> ignored;
    OptionalView by_class, by_row;
    CrossEntropyOptions options;
};

std::tuple<stable::Tensor, stable::Tensor> both(const stable::Tensor& scores, const stable::Tensor& y_true,
                                                const std::optional<int64_t>& ignore_index,
                                                const OptionalTensor& class_weights,
                                                const OptionalTensor& sample_weights, double label_smoothing,
                                                const Place* place) {
    const Guard guard(scores);
    check_dtype("scores", scores);
    check_dims("scores", scores, 2, "(m, classes)");
    const Targets targets(scores, y_true, ignore_index, class_weights, sample_weights, label_smoothing);
    if (place) check_place(*place, scores, "scores");
    check_here("scores", scores);
    const auto loss = place ? place->losses : empty(scores, Sizes{});
    const auto gradient = empty(scores, scores.sizes());
    const Tensor loss_view = view(loss), gradient_view = view(gradient), step = view(place ? place->step : loss);
    targets.launch({Reduction::mean, &loss_view, place ? &step : nullptr, &gradient_view}, guard);
    return {loss, gradient};
}

std::tuple<stable::Tensor, stable::Tensor> cross_entropy(const stable::Tensor& scores, const stable::Tensor& y_true,
                                                         const std::optional<int64_t>& ignore_index,
                                                         const OptionalTensor& class_weights,
                                                         const OptionalTensor& sample_weights, double label_smoothing) {
    return both(scores, y_true, ignore_index, class_weights, sample_weights, label_smoothing, nullptr);
}

// losses (steps,), step ()
stable::Tensor cross_entropy_step_(const stable::Tensor& scores, const stable::Tensor& y_true,
                                   const stable::Tensor& losses, const stable::Tensor& step,
                                   const OptionalTensor& class_weights, const OptionalTensor& sample_weights,
                                   double label_smoothing) {
    const Place place{losses, step};
    return std::get<1>(both(scores, y_true, std::nullopt, class_weights, sample_weights, label_smoothing, &place));
}

stable::Tensor cross_entropy_value(const stable::Tensor& scores, const stable::Tensor& y_true,
                                   const std::optional<int64_t>& ignore_index, const OptionalTensor& class_weights,
                                   double label_smoothing, const std::string& reduction) {
    const Guard guard(scores);
    const Targets targets(scores, y_true, ignore_index, class_weights, std::nullopt, label_smoothing);
    LossCall asks{reduction_of(reduction)};
    check_here("scores", scores);
    const auto loss = empty(scores, asks.reduction == Reduction::none ? targets.rows : Sizes{});
    const Tensor loss_view = view(loss);
    asks.loss = &loss_view;
    targets.launch(asks, guard);
    return loss;
}

// grad (), or, without reduction, of the rows
stable::Tensor cross_entropy_backward(const stable::Tensor& grad, const stable::Tensor& scores,
                                      const stable::Tensor& y_true, const std::optional<int64_t>& ignore_index,
                                      const OptionalTensor& class_weights, double label_smoothing,
                                      const std::string& reduction) {
    const Guard guard(scores);
    const Targets targets(scores, y_true, ignore_index, class_weights, std::nullopt, label_smoothing);
    LossCall asks{reduction_of(reduction)};
    check_alike("grad", grad, scores, "scores");
    check_shape("grad", grad, asks.reduction == Reduction::none ? targets.rows : Sizes{});
    check_here("scores", scores);
    const auto deltas = operand(grad);
    const auto gradient = empty(scores, scores.sizes());
    const Tensor delta_view = view(deltas), gradient_view = view(gradient);
    asks.delta = &delta_view, asks.gradient = &gradient_view;
    targets.launch(asks, guard);
    return gradient;
}

}  // namespace

SCRATCHCUDA_OPS(m) {
    m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
    m.impl("cross_entropy_step_", TORCH_BOX(&cross_entropy_step_));
    m.impl("cross_entropy_value", TORCH_BOX(&cross_entropy_value));
    m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
}

}  // namespace scratchcuda::ops
