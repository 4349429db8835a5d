// Softmax over rows: a_j = exp(z_j - m) / sum_k exp(z_k - m) with m = max(z), and backward
// dz_j = a_j (delta_j - sum_k delta_k a_k).
//
// Threads: a team of threads takes a row, the thread of rank r the columns r, r + team, r + 2 team, ... A team is a
// warp (several share a block) or, for long rows, a block. Each thread keeps its part of the row in registers, so that
// a row is read once. A row too long for the registers of a block is read twice: once for the maximum and the sum,
// which is rescaled whenever the maximum grows, and once for the result. Least work for m rows of n elements of s
// bytes: forward moves 2 m n s bytes and takes m n exponentials, backward moves 3 m n s bytes. The memory is the limit.
// Sums run in a fixed order, so that the same row gives the same bits.

#include <cmath>

#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "rows.cuh"

namespace scratchcuda {

template <class T, int inputs>
struct Rows {
    Matrix<T> in[inputs], out;
};

template <class T, int team, int kept>
__device__ void forward_row(const Rows<T, 1>& rows, int64_t i, Accumulator<T>* shared) {
    using A = Accumulator<T>;
    using Row = typename Matrix<T>::Row;
    const int64_t columns = rows.out.columns.length;
    const Row z_row = rows.in[0].row(i), a = rows.out.row(i);
    Part<A, team, kept, Row> z(z_row, columns, -infinity<A>());
    if constexpr (kept > 0) {
        A largest = lowest<A>(), sum = 0;
#pragma unroll
        for (const A score : z.value) largest = Maximum{}(largest, score);
        largest = reduce<team>(largest, Maximum{}, shared);
#pragma unroll
        for (A& score : z.value) sum += score = std::exp(score - largest);
        sum = reduce<team>(sum, Add{}, shared);
        each_column<team, kept>(columns, [&](int64_t j, int k) { a[j] = narrow<T>(z.value[k] / sum); });
    } else {
        ExponentialSum<A> all;
        each_column<team, kept>(columns, [&](int64_t j, int k) { all.add(z(j, k)); });
        all.template combine<team>(shared);
        each_column<team, kept>(columns,
                                [&](int64_t j, int k) { a[j] = narrow<T>(std::exp(z(j, k) - all.largest) / all.sum); });
    }
}

template <class T, int team, int kept>
__device__ void backward_row(const Rows<T, 2>& rows, int64_t i, Accumulator<T>* shared) {
    using A = Accumulator<T>;
    using Row = typename Matrix<T>::Row;
    const int64_t columns = rows.out.columns.length;
    const Row delta_row = rows.in[0].row(i), a_row = rows.in[1].row(i), dz = rows.out.row(i);
    const Part<A, team, kept, Row> delta(delta_row, columns, 0), a(a_row, columns, 0);
    A dot = 0;
    each_column<team, kept, true>(columns, [&](int64_t j, int k) { dot += delta(j, k) * a(j, k); });
    dot = reduce<team>(dot, Add{}, shared);
    each_column<team, kept>(columns, [&](int64_t j, int k) { dz[j] = narrow<T>(a(j, k) * (delta(j, k) - dot)); });
}

template <int team>
constexpr int softmax_threads = team > warp ? team : 4 * warp;

template <class T, int inputs, int team, int kept>
__global__ void __launch_bounds__(softmax_threads<team>, 1) softmax_rows(const __grid_constant__ Rows<T, inputs> rows) {
    overlap_launches();
    SharedMemory memory;
    auto* shared = memory.take<Accumulator<T>>(team / warp);
    const int64_t i = int64_t(blockIdx.x) * (softmax_threads<team> / team) + threadIdx.x / team;
    if (i >= rows.out.rows.length) return;  // a whole team
    if constexpr (inputs == 1) {
        forward_row<T, team, kept>(rows, i, shared);
    } else {
        backward_row<T, team, kept>(rows, i, shared);
    }
}

template <class T, int inputs, int team, int kept>
cudaError_t launch_rows(const Rows<T, inputs>& rows, cudaStream_t stream) {
    const int64_t teams = softmax_threads<team> / team;
    const int64_t blocks = (rows.out.rows.length + teams - 1) / teams;
    constexpr size_t shared_bytes = team / warp * sizeof(Accumulator<T>);
    return launch<softmax_rows<T, inputs, team, kept>, softmax_threads<team>, shared_bytes>(blocks, 1, stream, rows);
}

// The output is the last of the tensors.
template <int inputs>
cudaError_t launch_softmax(const Tensor (&tensors)[inputs + 1], cudaStream_t stream) {
    return dispatch(tensors[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        Rows<T, inputs> rows;
        bool fits = as_matrix(tensors[inputs], rows.out);
        for (int t = 0; t < inputs; ++t) fits &= as_matrix(tensors[t], rows.in[t]);
        if (!fits) return cudaErrorInvalidValue;
        const int64_t columns = rows.out.columns.length;
        if (rows.out.rows.length == 0 || columns == 0) return cudaSuccess;
        if (columns <= 4 * warp) return launch_rows<T, inputs, warp, 4>(rows, stream);
        if (columns <= 16 * warp) return launch_rows<T, inputs, warp, 16>(rows, stream);
        if (columns <= 16 * block) return launch_rows<T, inputs, block, 16>(rows, stream);
        return launch_rows<T, inputs, block, 0>(rows, stream);
    });
}

cudaError_t softmax_forward(Tensor z, Tensor a, cudaStream_t stream) { return launch_softmax<1>({z, a}, stream); }

cudaError_t softmax_backward(Tensor delta, Tensor a, Tensor dz, cudaStream_t stream) {
    return launch_softmax<2>({delta, a, dz}, stream);
}

}  // namespace scratchcuda
