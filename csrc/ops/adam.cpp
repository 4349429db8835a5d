// The updates of torch.optim.Adam and AdamW on a list of tensors.
#include "lists.h"

namespace scratchcuda::ops {
namespace {

void check_beta(const char* name, double value) {
    if (!(value >= 0 && value < 1)) {
        refuse(name, " is ", value, ", expected a number of at least 0 and less than 1");
    }
}

void adam_update_(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                  const Tensors& max_exp_avg_sqs, double lr, double beta1, double beta2, double eps,
                  double weight_decay, bool decoupled_weight_decay, bool amsgrad, bool maximize, int64_t step,
                  const OptionalTensor& rates, const OptionalTensor& turn) {
    if (params.empty()) return check_list({"grads", grads}, params);
    const Guard guard(params[0]);
    std::vector<List> state{{"exp_avgs", exp_avgs}, {"exp_avg_sqs", exp_avg_sqs}};
    if (amsgrad) state.push_back({"max_exp_avg_sqs", max_exp_avg_sqs});
    check_update(params, grads, state, rates, turn, 3);
    check_non_negative("lr", lr);
    check_beta("beta1", beta1);
    check_beta("beta2", beta2);
    check_non_negative("eps", eps);
    check_non_negative("weight_decay", weight_decay);
    if (step < 1) refuse("step is ", step, ", expected a positive integer");
    check_here("params[0]", params[0]);
    const auto p = views(params), g = views(grads), m = views(exp_avgs), v = views(exp_avg_sqs);
    const auto u = views(max_exp_avg_sqs);
    const OptionalView all(rates), next(turn);
    launched("adam_update_",
             adam_update({p.data(), g.data(), m.data(), v.data(), u.data(), static_cast<int64_t>(params.size())},
                         {lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay, amsgrad, maximize, step},
                         {all.get(), next.get()}, guard.stream));
}

}  // namespace

SCRATCHCUDA_OPS(m) { m.impl("adam_update_", TORCH_BOX(&adam_update_)); }

}  // namespace scratchcuda::ops
