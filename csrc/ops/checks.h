// Checks of arguments, worded as those of scratchcuda/ops/_checks.py, which raise TypeError and ValueError before an op
// is called; these make the raw ops as safe. Every error names the argument, what it got and what it expects.
#pragma once

#include <algorithm>
#include <cmath>
#include <sstream>

#include "op.h"

namespace scratchcuda::ops {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

inline std::string text(ScalarType dtype) {
    static const char* const names[] = {"uint8",   "int8",    "int16",     "int32",     "int64",      "float16",
                                        "float32", "float64", "complex32", "complex64", "complex128", "bool",
                                        "qint8",   "quint8",  "qint32",    "bfloat16"};
    const auto number = static_cast<size_t>(dtype);
    return number < std::size(names) ? std::string("torch.") + names[number] : "number " + std::to_string(number);
}

inline std::string text(const stable::Device& device) {
    if (device.is_cpu()) return "cpu";
    if (device.is_cuda()) return "cuda:" + std::to_string(device.index());
    if (device.type() == torch::headeronly::DeviceType::Meta) return "meta";
    return "number " + std::to_string(static_cast<int>(device.type()));
}

template <class Sizes>
std::string text(const Sizes& sizes) {
    std::string list;
    for (const int64_t size : sizes) list += (list.empty() ? "" : ", ") + std::to_string(size);
    return "(" + list + (sizes.size() == 1 ? ",)" : ")");
}

// One of the dtypes that the kernels have.
inline void check_dtype(const std::string& name, const stable::Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Double:
        case ScalarType::Float:
        case ScalarType::Half:
        case ScalarType::BFloat16:
            return;
        default:
            refuse(name, " has dtype ", text(tensor.scalar_type()),
                   ", expected torch.float64, torch.float32, torch.float16 or torch.bfloat16");
    }
}

inline void check_dtype(const std::string& name, const stable::Tensor& tensor, ScalarType expected,
                        const char* other_name) {
    if (tensor.scalar_type() != expected) {
        refuse(name, " has dtype ", text(tensor.scalar_type()), ", expected ", text(expected), " as ", other_name);
    }
}

inline void check_device(const std::string& name, const stable::Tensor& tensor, const stable::Tensor& other,
                         const char* other_name) {
    if (tensor.device() != other.device()) {
        refuse(name, " is on device ", text(tensor.device()), ", expected ", text(other.device()), " as ", other_name);
    }
}

// One dtype and one device.
inline void check_alike(const std::string& name, const stable::Tensor& tensor, const stable::Tensor& other,
                        const char* other_name) {
    check_dtype(name, tensor, other.scalar_type(), other_name);
    check_device(name, tensor, other, other_name);
}

// Numbers of classes, samples or steps.
inline void check_index(const std::string& name, const stable::Tensor& tensor, const stable::Tensor& other,
                        const char* other_name) {
    if (tensor.scalar_type() != ScalarType::Long) {
        refuse(name, " has dtype ", text(tensor.scalar_type()), ", expected torch.int64");
    }
    check_device(name, tensor, other, other_name);
}

// The device that this library's kernels run on. Comes last, so that all else can be checked without one.
inline void check_here(const std::string& name, const stable::Tensor& tensor) {
    const bool here = SCRATCHCUDA_EMULATOR ? tensor.is_cpu() : tensor.is_cuda();
    if (!here) {
        refuse(name, " is on device ", text(tensor.device()), ", expected ", SCRATCHCUDA_EMULATOR ? "cpu" : "cuda");
    }
}

template <class Sizes>
void check_shape(const std::string& name, const stable::Tensor& tensor, const Sizes& expected) {
    const auto sizes = tensor.sizes();
    if (!std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) {
        refuse(name, " has shape ", text(sizes), ", expected ", text(expected));
    }
}

inline void check_dims(const char* name, const stable::Tensor& tensor, int64_t dims, const char* expected) {
    if (tensor.dim() != dims) refuse(name, " has shape ", text(tensor.sizes()), ", expected ", expected);
}

inline void check_features(const char* name, const stable::Tensor& tensor, int64_t expected) {
    if (tensor.dim() == 0 || tensor.size(tensor.dim() - 1) != expected) {
        refuse(name, " has shape ", text(tensor.sizes()), ", expected ", expected, " features as its last dimension");
    }
}

// What an activation takes, forward and backward, as its kernels do.
inline stable::Tensor checked(const stable::Tensor& z) {
    check_dtype("z", z);
    check_here("z", z);
    return operand(z);
}

inline std::tuple<stable::Tensor, stable::Tensor> checked(const stable::Tensor& delta, const stable::Tensor& value,
                                                          const char* name) {
    check_dtype("delta", delta);
    check_alike(name, value, delta, "delta");
    check_shape(name, value, delta.sizes());
    check_here("delta", delta);
    return {operand(delta), operand(value)};
}

// Every element has memory of its own.
inline void check_writable(const std::string& name, const stable::Tensor& tensor) {
    for (int64_t d = 0; d < tensor.dim(); ++d) {
        if (tensor.stride(d) == 0 && tensor.size(d) > 1) {
            refuse(name, " is expanded (strides ", text(tensor.strides()),
                   "), expected memory of its own for each element");
        }
    }
}

// A tensor that is written, or only read.
struct Used {
    std::string name;
    const stable::Tensor& tensor;
    bool written;
};

// None that is written shares memory with another, as far as those without gaps between elements can tell.
inline void check_apart(const std::vector<Used>& all) {
    using Span = std::tuple<const char*, const char*, const Used*>;
    std::vector<Span> spans;
    for (const Used& used : all) {
        int64_t reach = 1;
        for (int64_t d = 0; d < used.tensor.dim(); ++d) reach += (used.tensor.size(d) - 1) * used.tensor.stride(d);
        if (used.tensor.numel() == 0 || reach != used.tensor.numel()) continue;
        const char* begin = static_cast<const char*>(used.tensor.data_ptr());
        spans.emplace_back(begin, begin + reach * used.tensor.element_size(), &used);
    }
    std::sort(spans.begin(), spans.end());
    Span furthest[2] = {};  // of those read and those written, which one ends last
    for (const Span& span : spans) {
        const auto& [begin, end, used] = span;
        for (const auto& [other_begin, other_end, other] : furthest) {
            if (other && begin < other_end && (used->written || other->written)) {
                refuse(used->name, " shares memory with ", other->name, ", expected memory of its own");
            }
        }
        if (end > std::get<1>(furthest[used->written])) furthest[used->written] = span;
    }
}

inline void check_non_negative(const char* name, double value) {
    if (!(std::isfinite(value) && value >= 0)) {
        refuse(name, " is ", value, ", expected a finite number of at least 0");
    }
}

}  // namespace scratchcuda::ops
