// What the ops of losses share: where the loss of a training step goes, and how values become one.
#pragma once

#include "checks.h"

namespace scratchcuda::ops {

// To losses[step], and step is incremented.
struct Place {
    const stable::Tensor &losses, &step;
};

inline void check_place(const Place& place, const stable::Tensor& like, const char* name) {
    check_alike("losses", place.losses, like, name);
    check_dims("losses", place.losses, 1, "(steps,)");
    check_writable("losses", place.losses);
    check_index("step", place.step, like, name);
    check_shape("step", place.step, Sizes{});
}

inline Reduction reduction_of(const std::string& name) {
    if (name == "none") return Reduction::none;
    if (name == "mean") return Reduction::mean;
    if (name == "sum") return Reduction::sum;
    refuse("reduction is '", name, "', expected one of none, mean, sum");
}

}  // namespace scratchcuda::ops
