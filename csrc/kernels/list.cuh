// A list of types, as that of all activations, and places in it.
#pragma once

#include <cstdint>
#include <type_traits>

namespace scratchcuda {

template <class... F>
struct List {};

template <class F, class... Others>
constexpr int32_t index_of(List<Others...>) {
    int32_t index = 0;
    static_cast<void>(((std::is_same_v<F, Others> || (++index, false)) || ...));
    return index;
}

}  // namespace scratchcuda
