// What tests and measurements may set.
#include "../kernels/launch.cuh"
#include "op.h"

namespace scratchcuda::ops {

Tile tile = Tile::automatic;

}  // namespace scratchcuda::ops

// Takes this tile for all products from here on; a negative one chooses by shape again.
extern "C" void scratchcuda_set_tile(int32_t tile) { scratchcuda::ops::tile = static_cast<scratchcuda::Tile>(tile); }

// Whether launches from here on may overlap those before them.
extern "C" void scratchcuda_set_overlap(bool overlaps) { scratchcuda::overlaps = overlaps; }
