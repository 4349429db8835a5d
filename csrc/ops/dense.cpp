// The dense layer's ops: forward, with and without what f was of, the gradients, and the update with no gradient
// stored.
#include "../kernels/activations.cuh"
#include "checks.h"

namespace scratchcuda::ops {

namespace {

// The activations that an op takes: all, those with an op of their own and none, or those that derive from the input.
enum class Takes { all, elementwise, of_input };

// The elementwise activation of this name, with these parameters; none, for a softmax, where the op takes one.
template <class... F>
Activation chosen(const std::string& name, const std::vector<double>& parameters, Takes takes, List<F...>) {
    struct Known {
        const char* name;
        size_t parameters;
        bool taken;
    };
    static constexpr int32_t first = 1;  // of the list
    const Known known[] = {{"none", 0, takes != Takes::of_input},
                           {F::name, F::parameters, takes != Takes::of_input || F::of_input}...,
                           {"softmax", 0, takes == Takes::all}};
    const auto* const found =
        std::find_if(std::begin(known), std::end(known), [&](auto& f) { return f.taken && name == f.name; });
    if (found == std::end(known)) {
        std::string names;
        for (const auto& f : known) {
            if (f.taken) names += std::string(names.empty() ? "" : ", ") + f.name;
        }
        refuse("activation is '", name, "', expected one of ", names);
    }
    if (parameters.size() != found->parameters) {
        refuse("activation_parameters has ", parameters.size(), " numbers, expected ", found->parameters, " for ",
               name);
    }
    Activation f;
    if (name != "softmax") f.index = static_cast<int32_t>(found - known) - first;
    std::copy(parameters.begin(), parameters.end(), f.parameters);
    return f;
}

// The sizes of `tensor` with another last one.
Sizes with_features(const stable::Tensor& tensor, int64_t features) {
    Sizes sizes(tensor.sizes().begin(), tensor.sizes().end());
    sizes.back() = features;
    return sizes;
}

// x (..., n_in), w (n_in, n_out), b (n_out,) -> (..., n_out), and in z, if asked for, what f was of
stable::Tensor forward(const char* op, const stable::Tensor& x, const stable::Tensor& w, const OptionalTensor& b,
                       const Activation& f, const Guard& guard, stable::Tensor* z) {
    check_dtype("x", x);
    check_alike("w", w, x, "x");
    check_dims("w", w, 2, "(n_in, n_out)");
    check_features("x", x, w.size(0));
    if (b) {
        check_alike("b", *b, x, "x");
        check_shape("b", *b, Sizes{w.size(1)});
    }
    check_here("x", x);
    const auto rows = operand(x);
    auto a = empty(x, with_features(x, w.size(1)));
    if (z) *z = empty(x, with_features(x, w.size(1)));
    const OptionalView bias(b);
    const Tensor z_view = view(z ? *z : a);
    launched(op, dense_forward(view(rows), view(w), bias.get(), view(a), z ? &z_view : nullptr, f, tile, guard.stream));
    return a;
}

// x (..., n_in), w (n_in, n_out), b (n_out,) -> (..., n_out)
stable::Tensor dense(const stable::Tensor& x, const stable::Tensor& w, const OptionalTensor& b,
                     const std::string& activation, const std::vector<double>& activation_parameters) {
    const Guard guard(x);
    const auto f = chosen(activation, activation_parameters, Takes::all, Activations{});
    auto a = forward("dense", x, w, b, f, guard, nullptr);
    if (activation == "softmax") launched("dense", softmax_forward(view(a), view(a), guard.stream));
    return a;
}

// x (..., n_in), w (n_in, n_out), b (n_out,) -> (..., n_out), (..., n_out)
std::tuple<stable::Tensor, stable::Tensor> dense_with_preactivation(const stable::Tensor& x, const stable::Tensor& w,
                                                                    const OptionalTensor& b,
                                                                    const std::string& activation,
                                                                    const std::vector<double>& activation_parameters) {
    const Guard guard(x);
    const auto f = chosen(activation, activation_parameters, Takes::of_input, Activations{});
    stable::Tensor z;
    auto a = forward("dense_with_preactivation", x, w, b, f, guard, &z);
    return {a, z};
}

// delta (..., n_out), w (n_in, n_out), a (..., n_in) -> (..., n_in)
stable::Tensor dense_backward_input(const stable::Tensor& delta, const stable::Tensor& w, const OptionalTensor& a,
                                    const std::string& activation, const std::vector<double>& activation_parameters) {
    const Guard guard(delta);
    check_dtype("delta", delta);
    check_alike("w", w, delta, "delta");
    check_dims("w", w, 2, "(n_in, n_out)");
    check_features("delta", delta, w.size(1));
    const auto f = chosen(activation, activation_parameters, Takes::elementwise, Activations{});
    const auto sizes = with_features(delta, w.size(0));
    if (a) {
        check_alike("a", *a, delta, "delta");
        check_shape("a", *a, sizes);
    } else if (f.index >= 0) {
        const char* const values = derives_from_input(f, Activations{}) ? "inputs" : "outputs";
        refuse("a is None, expected the ", values, " of ", activation);
    }
    check_here("delta", delta);
    const auto rows = operand(delta), outputs = a ? operand(*a) : rows;
    const Tensor a_view = view(outputs);
    auto dx = empty(delta, sizes);
    launched("dense_backward_input", scratchcuda::dense_backward_input(view(rows), view(w), a ? &a_view : nullptr, f,
                                                                       view(dx), tile, guard.stream));
    return dx;
}

void check_rows(const stable::Tensor& delta, const stable::Tensor& x) {
    check_dtype("delta", delta);
    check_alike("x", x, delta, "delta");
    const bool rows = x.dim() > 0 && delta.dim() == x.dim() && with_features(delta, 0) == with_features(x, 0);
    if (!rows) {
        refuse("delta has shape ", text(delta.sizes()), ", expected (..., n_out) as x ", text(x.sizes()));
    }
}

// delta (..., n_out), x (..., n_in) -> (n_in, n_out), (n_out,). In memory the first lies as torch.nn's weights
// (n_out, n_in) do, so that autograd need not copy it.
std::tuple<stable::Tensor, stable::Tensor> dense_backward_weights(const stable::Tensor& delta,
                                                                  const stable::Tensor& x) {
    const Guard guard(delta);
    check_rows(delta, x);
    check_here("delta", delta);
    const int64_t last = x.dim() - 1;
    const auto delta_rows = operand(delta), x_rows = operand(x);
    const auto dw = stable::transpose(empty(x, Sizes{delta.size(last), x.size(last)}), 0, 1);
    const auto db = empty(x, Sizes{delta.size(last)});
    const auto partials = workspace(x, dense_workspace_bytes(view(delta_rows), view(x_rows), tile));
    launched("dense_backward_weights",
             scratchcuda::dense_backward_weights(view(delta_rows), view(x_rows), view(dw), view(db),
                                                 partials.data_ptr(), tile, guard.stream));
    return {dw, db};
}

// delta (..., n_out), x (..., n_in), w (n_in, n_out), b (n_out,)
void dense_update_(const stable::Tensor& delta, const stable::Tensor& x, const stable::Tensor& w,
                   const OptionalTensor& b, double lr, double weight_decay) {
    const Guard guard(delta);
    check_rows(delta, x);
    const int64_t last = x.dim() - 1;
    std::vector<Used> used{{"w", w, true}, {"delta", delta, false}, {"x", x, false}};
    check_alike("w", w, delta, "delta");
    check_shape("w", w, Sizes{x.size(last), delta.size(last)});
    check_writable("w", w);
    if (b) {
        check_alike("b", *b, delta, "delta");
        check_shape("b", *b, Sizes{delta.size(last)});
        check_writable("b", *b);
        used.push_back({"b", *b, true});
    }
    check_apart(used);
    check_non_negative("lr", lr);
    check_non_negative("weight_decay", weight_decay);
    check_here("delta", delta);
    const auto delta_rows = operand(delta), x_rows = operand(x);
    const auto partials = workspace(x, dense_workspace_bytes(view(delta_rows), view(x_rows), tile));
    const OptionalView bias(b);
    launched("dense_update_", dense_update(view(delta_rows), view(x_rows), view(w), bias.get(), lr, weight_decay,
                                           partials.data_ptr(), tile, guard.stream));
}

}  // namespace

SCRATCHCUDA_OPS(m) {
    m.impl("dense", TORCH_BOX(&dense));
    m.impl("dense_with_preactivation", TORCH_BOX(&dense_with_preactivation));
    m.impl("dense_backward_input", TORCH_BOX(&dense_backward_input));
    m.impl("dense_backward_weights", TORCH_BOX(&dense_backward_weights));
    m.impl("dense_update_", TORCH_BOX(&dense_update_));
}

}  // namespace scratchcuda::ops
