// Lists of tensors that an optimizer updates, and their checks.
#pragma once

#include "checks.h"

namespace scratchcuda::ops {

using Tensors = std::vector<stable::Tensor>;

inline std::vector<Tensor> views(const Tensors& tensors) {
    std::vector<Tensor> found;
    for (const auto& tensor : tensors) found.push_back(view(tensor));
    return found;
}

inline std::string at(const char* list, size_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

struct List {
    const char* name;
    const Tensors& tensors;
};

// One tensor for each parameter, of its shape, dtype and device.
inline void check_list(const List& list, const Tensors& params) {
    const auto& [name, tensors] = list;
    if (tensors.size() != params.size()) {
        refuse(name, " has ", tensors.size(), " tensors, expected ", params.size(), " as params");
    }
    for (size_t i = 0; i < params.size(); ++i) {
        check_alike(at(name, i), tensors[i], params[i], at("params", i).c_str());
        check_shape(at(name, i), tensors[i], params[i].sizes());
    }
}

// What an update takes: parameters, gradients and the state, which it writes; the numbers of all steps (steps, columns)
// and which one's turn it is (), or neither. The parameters are not none.
inline void check_update(const Tensors& params, const Tensors& grads, const std::vector<List>& state,
                         const OptionalTensor& rates, const OptionalTensor& turn, int64_t columns) {
    for (size_t i = 0; i < params.size(); ++i) {
        check_dtype(at("params", i), params[i]);
        check_device(at("params", i), params[i], params[0], "params[0]");
    }
    check_list({"grads", grads}, params);
    for (const List& list : state) check_list(list, params);
    std::vector<Used> used;
    for (size_t i = 0; i < params.size(); ++i) {
        used.push_back({at("params", i), params[i], true});
        used.push_back({at("grads", i), grads[i], false});
        for (const auto& [name, tensors] : state) used.push_back({at(name, i), tensors[i], true});
    }
    if (rates.has_value() != turn.has_value()) {
        refuse(rates ? "turn" : "rates", " is None, expected a tensor beside ", rates ? "rates" : "turn");
    }
    if (rates) {
        if (rates->scalar_type() != ScalarType::Double) {
            refuse("rates has dtype ", text(rates->scalar_type()), ", expected torch.float64");
        }
        if (rates->dim() != 2 || rates->size(0) == 0 || rates->size(1) != columns) {
            refuse("rates has shape ", text(rates->sizes()), ", expected (steps, ", columns, "), at least one step");
        }
        check_device("rates", *rates, params[0], "params[0]");
        check_index("turn", *turn, params[0], "params[0]");
        check_shape("turn", *turn, Sizes{});
        used.push_back({"rates", *rates, false});
        used.push_back({"turn", *turn, false});
    }
    for (const Used& tensor : used) {
        if (tensor.written) check_writable(tensor.name, tensor.tensor);
    }
    check_apart(used);
}

}  // namespace scratchcuda::ops
