// The update of torch.optim.SGD on a list of tensors.
#include "lists.h"

namespace scratchcuda::ops {
namespace {

void sgd_update_(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers, double lr,
                 double weight_decay, double momentum, double dampening, bool nesterov, bool maximize,
                 bool is_first_step, const OptionalTensor& rates, const OptionalTensor& turn) {
    if (params.empty()) return check_list({"grads", grads}, params);
    const Guard guard(params[0]);
    std::vector<List> state;
    if (momentum != 0) state.push_back({"momentum_buffers", momentum_buffers});
    check_update(params, grads, state, rates, turn, 1);
    check_non_negative("lr", lr);
    check_non_negative("weight_decay", weight_decay);
    check_non_negative("momentum", momentum);
    if (!std::isfinite(dampening)) refuse("dampening is ", dampening, ", expected a finite number");
    if (nesterov && (momentum == 0 || dampening != 0)) {
        refuse("nesterov needs momentum and no dampening, got momentum ", momentum, ", dampening ", dampening);
    }
    check_here("params[0]", params[0]);
    const auto p = views(params), g = views(grads), m = views(momentum_buffers);
    const OptionalView all(rates), next(turn);
    launched("sgd_update_", sgd_update({p.data(), g.data(), m.data(), static_cast<int64_t>(params.size())},
                                       {lr, weight_decay, momentum, dampening, nesterov, maximize, is_first_step},
                                       {all.get(), next.get()}, guard.stream));
}

}  // namespace

SCRATCHCUDA_OPS(m) { m.impl("sgd_update_", TORCH_BOX(&sgd_update_)); }

}  // namespace scratchcuda::ops
