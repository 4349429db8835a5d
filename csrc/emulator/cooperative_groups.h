// The part of CUDA's cooperative groups that synchronises a whole grid.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
    void sync(EMULATOR_HERE) const { emulator::sync_grid({file, line}); }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
