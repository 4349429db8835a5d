// Included before every kernel: its launches come to the stand-in, which runs them on the emulator, now or in replays.
#pragma once

#define cudaLaunchKernelEx launch_on_emulator
#include <cuda_runtime.h>
#undef cudaLaunchKernelEx

#include <functional>
#include <vector>

namespace stand_in {

// Refuses a launch on another stream than torch's current one, and pointers to memory of another device.
cudaError_t take_launch(cudaStream_t stream, std::function<cudaError_t()> launch, const void* parameters, size_t bytes);

}  // namespace stand_in

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    using Values = std::tuple<std::decay_t<Parameters>...>;
    const Values values(std::forward<Arguments>(arguments)...);
    auto launch = [config = *config, kernel, values,
                   attributes = std::vector(config->attrs, config->attrs + config->numAttrs)]() mutable {
        config.attrs = attributes.data();
        return std::apply([&](const auto&... value) { return launch_on_emulator(&config, kernel, value...); }, values);
    };
    return stand_in::take_launch(config->stream, launch, &values, sizeof(Values));
}
