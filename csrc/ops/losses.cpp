// The elementwise losses' ops, those of each that losses.cuh lists: the value; the gradient with respect to the first
// tensor, from that with respect to the value; and, of those that a model trains with, both of the mean in one, in a
// training step the gradient alone.
#include "../kernels/losses.cuh"

#include <utility>

#include "place.h"

namespace scratchcuda::ops {
namespace {

const char* const weight_names[most_weights] = {"weight", "pos_weight"};

// A weight as the kernels see it, of the shape of the predictions, which it broadcasts to; or none.
struct Weight {
    Weight() = default;
    Weight(const char* name, const OptionalTensor& weight, const stable::Tensor& y_pred) {
        if (!weight) return;
        check_alike(name, *weight, y_pred, "y_pred");
        const int64_t missing = y_pred.dim() - weight->dim();
        bool fits = missing >= 0;
        for (int64_t d = 0; fits && d < y_pred.dim(); ++d) {
            const bool expands = d < missing || weight->size(d - missing) == 1;
            fits = expands || weight->size(d - missing) == y_pred.size(d);
            strides.push_back(expands ? 0 : weight->stride(d - missing));
        }
        if (!fits)
            refuse(name, " has shape ", text(weight->sizes()), ", expected one that broadcasts to ",
                   text(y_pred.sizes()), " as y_pred");
        seen = view(*weight);
        seen->dims = static_cast<int32_t>(y_pred.dim()), seen->size = y_pred.sizes().data();
    }
    const Tensor* get() {
        if (!seen) return nullptr;
        seen->stride = strides.data();
        return &*seen;
    }
    Sizes strides;
    std::optional<Tensor> seen;
};

void check_pair(const stable::Tensor& y_pred, const stable::Tensor& y_true) {
    check_dtype("y_pred", y_pred);
    check_alike("y_true", y_true, y_pred, "y_pred");
    check_shape("y_true", y_true, y_pred.sizes());
}

template <size_t>
using Optional = OptionalTensor;
template <size_t>
using Number = double;

// y_pred, y_true of one shape. Their last arguments but for a reduction are the loss's weights and its parameter, if it
// has any.
template <class F, class Weights = std::make_index_sequence<F::weights>,
          class Parameters = std::make_index_sequence<F::parameters>>
struct LossOps;

template <class F, size_t... w, size_t... p>
struct LossOps<F, std::index_sequence<w...>, std::index_sequence<p...>> {
    static void launch(const stable::Tensor& predictions, const stable::Tensor& targets, ElementwiseLoss f,
                       const LossCall& call, const Guard& guard) {
        f.index = index_of<F>(ElementwiseLosses{});
        const auto bytes = elementwise_loss_workspace_bytes(view(predictions), call);
        const auto partials = workspace(predictions, bytes);
        launched(F::name,
                 elementwise_loss(view(predictions), view(targets), f, call, partials.data_ptr(), guard.stream));
    }

    static stable::Tensor value(const stable::Tensor& y_pred, const stable::Tensor& y_true, Optional<w>... weights,
                                Number<p>... parameter, const std::string& reduction) {
        const Guard guard(y_pred);
        check_pair(y_pred, y_true);
        Weight all[most_weights] = {{weight_names[w], weights, y_pred}...};
        LossCall call{reduction_of(reduction)};
        check_here("y_pred", y_pred);
        const auto predictions = operand(y_pred), targets = operand(y_true);
        const auto loss = call.reduction == Reduction::none ? empty_like(predictions, targets) : empty(y_pred, Sizes{});
        const Tensor loss_view = view(loss);
        call.loss = &loss_view;
        launch(predictions, targets, {0, {parameter...}, {all[0].get(), all[1].get()}}, call, guard);
        return loss;
    }

    // grad (), or, without reduction, of the same shape
    static stable::Tensor backward(const stable::Tensor& grad, const stable::Tensor& y_pred,
                                   const stable::Tensor& y_true, Optional<w>... weights, Number<p>... parameter,
                                   const std::string& reduction) {
        const Guard guard(y_pred);
        check_pair(y_pred, y_true);
        Weight all[most_weights] = {{weight_names[w], weights, y_pred}...};
        LossCall call{reduction_of(reduction)};
        check_alike("grad", grad, y_pred, "y_pred");
        if (call.reduction == Reduction::none) {
            check_shape("grad", grad, y_pred.sizes());
        } else {
            check_shape("grad", grad, Sizes{});
        }
        check_here("y_pred", y_pred);
        const auto predictions = operand(y_pred), targets = operand(y_true), deltas = operand(grad);
        const auto gradient = empty_like(predictions, targets);
        const Tensor delta_view = view(deltas), gradient_view = view(gradient);
        call.delta = &delta_view, call.gradient = &gradient_view;
        launch(predictions, targets, {0, {parameter...}, {all[0].get(), all[1].get()}}, call, guard);
        return gradient;
    }

    static std::tuple<stable::Tensor, stable::Tensor> both(const stable::Tensor& y_pred, const stable::Tensor& y_true,
                                                           const Place* place, Number<p>... parameter) {
        const Guard guard(y_pred);
        check_pair(y_pred, y_true);
        if (place) check_place(*place, y_pred, "y_pred");
        check_here("y_pred", y_pred);
        const auto predictions = operand(y_pred), targets = operand(y_true);
        const auto loss = place ? place->losses : empty(y_pred, Sizes{});
        const auto gradient = empty_like(predictions, targets);
        const Tensor loss_view = view(loss), gradient_view = view(gradient), step = view(place ? place->step : loss);
        launch(predictions, targets, {0, {parameter...}},
               {Reduction::mean, &loss_view, place ? &step : nullptr, &gradient_view}, guard);
        return {loss, gradient};
    }

    static std::tuple<stable::Tensor, stable::Tensor> loss(const stable::Tensor& y_pred, const stable::Tensor& y_true,
                                                           Number<p>... parameter) {
        return both(y_pred, y_true, nullptr, parameter...);
    }

    // losses (steps,), step ()
    static stable::Tensor step(const stable::Tensor& y_pred, const stable::Tensor& y_true, const stable::Tensor& losses,
                               const stable::Tensor& number, Number<p>... parameter) {
        const Place place{losses, number};
        return std::get<1>(both(y_pred, y_true, &place, parameter...));
    }

    template <class Library>
    static void add(Library& library) {
        static const std::string name = F::name, names[] = {name + "_value", name + "_backward", name + "_step_"};
        library.impl(names[0].c_str(), TORCH_BOX(&LossOps::value));
        library.impl(names[1].c_str(), TORCH_BOX(&LossOps::backward));
        if constexpr (F::trains) {
            library.impl(F::name, TORCH_BOX(&LossOps::loss));
            library.impl(names[2].c_str(), TORCH_BOX(&LossOps::step));
        }
    }
};

template <class Library, class... F>
void add(Library& library, List<F...>) {
    (LossOps<F>::add(library), ...);
}

}  // namespace

SCRATCHCUDA_OPS(m) { add(m, ElementwiseLosses{}); }

}  // namespace scratchcuda::ops
