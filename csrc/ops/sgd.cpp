// The update of torch.optim.SGD on a list of tensors.
#include "checks.h"

namespace scratchcuda::ops {
namespace {

using Tensors = std::vector<stable::Tensor>;

std::vector<Tensor> views(const Tensors& tensors) {
    std::vector<Tensor> found;
    for (const auto& tensor : tensors) found.push_back(view(tensor));
    return found;
}

std::string at(const char* list, size_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

// One tensor for each parameter, of its shape, dtype and device.
void check_list(const char* name, const Tensors& tensors, const Tensors& params) {
    if (tensors.size() != params.size()) {
        refuse(name, " has ", tensors.size(), " tensors, expected ", params.size(), " as params");
    }
    for (size_t i = 0; i < params.size(); ++i) {
        check_alike(at(name, i), tensors[i], params[i], at("params", i).c_str());
        check_shape(at(name, i), tensors[i], params[i].sizes());
    }
}

void sgd_update_(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers, double lr,
                 double weight_decay, double momentum, double dampening, bool nesterov, bool maximize,
                 bool is_first_step) {
    if (params.empty()) return check_list("grads", grads, params);
    const Guard guard(params[0]);
    for (size_t i = 0; i < params.size(); ++i) {
        check_dtype(at("params", i), params[i]);
        check_device(at("params", i), params[i], params[0], "params[0]");
    }
    check_list("grads", grads, params);
    if (momentum != 0) check_list("momentum_buffers", momentum_buffers, params);
    std::vector<Used> used;
    for (size_t i = 0; i < params.size(); ++i) {
        used.push_back({at("params", i), params[i], true});
        used.push_back({at("grads", i), grads[i], false});
        if (momentum != 0) used.push_back({at("momentum_buffers", i), momentum_buffers[i], true});
    }
    for (const Used& tensor : used) {
        if (tensor.written) check_writable(tensor.name, tensor.tensor);
    }
    check_apart(used);
    check_non_negative("lr", lr);
    check_non_negative("weight_decay", weight_decay);
    check_non_negative("momentum", momentum);
    if (!std::isfinite(dampening)) refuse("dampening is ", dampening, ", expected a finite number");
    if (nesterov && (momentum == 0 || dampening != 0)) {
        refuse("nesterov needs momentum and no dampening, got momentum ", momentum, ", dampening ", dampening);
    }
    check_here("params[0]", params[0]);
    const auto p = views(params), g = views(grads), m = views(momentum_buffers);
    launched("sgd_update_",
             sgd_update({p.data(), g.data(), m.data(), static_cast<int64_t>(params.size())},
                        {lr, weight_decay, momentum, dampening, nesterov, maximize, is_first_step}, guard.stream));
}

}  // namespace

SCRATCHCUDA_OPS(m) { m.impl("sgd_update_", TORCH_BOX(&sgd_update_)); }

}  // namespace scratchcuda::ops
