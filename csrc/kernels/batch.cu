// The batch of a training step, gathered: x_batch_i = x_r and y_batch_i = y_r with r = order[step batch_size + i]. The
// step is read from the device, so that the same launch, replayed, takes one batch after another.
//
// Threads: both tensors in one launch, a row of the grid each; their elements are bytes. A row of a batch is taken by a
// team of neighbouring threads, a power of two, that walks along it in the widest units, of up to 16 bytes, in which
// all rows are aligned runs of memory, otherwise element by element. Least work for m rows of n bytes in all: 2 m n
// bytes moved, and 8 m of `order`. The memory is the limit.

#include <algorithm>

#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "types.cuh"

namespace scratchcuda {

constexpr int batch_threads = 256;

// Strides count bytes.
struct BatchRows {
    const char* from;
    char* to;
    int64_t samples, row_stride, unit_stride;
    int64_t units;  // of a row
    int unit_bytes, team;
};

struct Batch {
    BatchRows parts[2];
    const int64_t *order, *step;
    int64_t samples, order_stride, batch_size, m;
};

template <class Unit>
__device__ void copy_row(const BatchRows& rows, int64_t sample, int64_t i) {
    const char* from = rows.from + sample * rows.row_stride;
    Unit* to = reinterpret_cast<Unit*>(rows.to) + i * rows.units;
    for (int64_t u = threadIdx.x % rows.team; u < rows.units; u += rows.team) {
        to[u] = *reinterpret_cast<const Unit*>(from + u * rows.unit_stride);
    }
}

__global__ void __launch_bounds__(batch_threads) take_rows(const __grid_constant__ Batch batch) {
    overlap_launches();
    const BatchRows& rows = batch.parts[blockIdx.y];
    const int64_t i = int64_t(blockIdx.x) * (batch_threads / rows.team) + threadIdx.x / rows.team;
    const int64_t at = *batch.step * batch.batch_size + i;
    if (i >= batch.m || at < 0 || at >= batch.samples) return;
    const int64_t sample = batch.order[at * batch.order_stride];
    if (sample < 0 || sample >= rows.samples) return;
    switch (rows.unit_bytes) {
        case 16:
            return copy_row<uint4>(rows, sample, i);
        case 8:
            return copy_row<uint2>(rows, sample, i);
        case 4:
            return copy_row<uint32_t>(rows, sample, i);
        default:
            return copy_row<uint16_t>(rows, sample, i);
    }
}

static BatchRows rows_of(const Tensor& from, const Tensor& to) {
    const int64_t bytes = element_bytes(from.dtype), columns = from.dims == 2 ? from.size[1] : 1;
    const int64_t row_stride = from.stride[0] * bytes, column_stride = from.dims == 2 ? from.stride[1] * bytes : bytes;
    BatchRows rows{static_cast<const char*>(from.data),
                   static_cast<char*>(to.data),
                   from.size[0],
                   row_stride,
                   column_stride,
                   columns,
                   static_cast<int>(bytes),
                   1};
    const auto addresses = reinterpret_cast<uintptr_t>(from.data) | reinterpret_cast<uintptr_t>(to.data);
    if (columns == 1 || column_stride == bytes) {
        const auto alignment = addresses | static_cast<uintptr_t>(row_stride) | static_cast<uintptr_t>(columns * bytes);
        while (rows.unit_bytes < 16 && alignment % (2 * rows.unit_bytes) == 0) rows.unit_bytes *= 2;
        rows.units = columns * bytes / rows.unit_bytes;
        rows.unit_stride = rows.unit_bytes;
    }
    while (rows.team < std::min<int64_t>(rows.units, batch_threads)) rows.team *= 2;
    return rows;
}

cudaError_t take_batch(Tensor x, Tensor y, Tensor order, Tensor step, int64_t batch_size, Tensor x_batch,
                       Tensor y_batch, cudaStream_t stream) {
    const int64_t m = x_batch.size[0];
    const Batch batch{{rows_of(x, x_batch), rows_of(y, y_batch)},
                      static_cast<const int64_t*>(order.data),
                      static_cast<const int64_t*>(step.data),
                      order.size[0],
                      order.stride[0],
                      batch_size,
                      m};
    const int64_t team = std::max(batch.parts[0].team, batch.parts[1].team), teams = batch_threads / team;
    if (m == 0) return cudaSuccess;
    return launch<take_rows, batch_threads>((m + teams - 1) / teams, 2, stream, batch);
}

}  // namespace scratchcuda
