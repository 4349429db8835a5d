// Cross-entropy of m rows of scores z of C classes against probabilities t: log p_j = z_j - max - log sum_k exp(z_k -
// max). Class weights c, sample weights s and smoothing eps make of t the effective targets
//   tau_ij = s_i c_j ((1 - eps) t_ij + eps / C);
// the loss of a row is -sum_j tau_j log p_j, the gradient delta (p_j sum_k tau_k - tau_j), with delta that of what
// follows; the mean divides both by the sum of s_i. A class index stands for a row with a one in its place, and the
// mean then divides by the sum of s_i c_i, c_i being the weight of that class; where tau is 0 then a score of -inf is
// let alone. An index that is no class makes loss and gradient NaN. Rows of one index may be ignored: they have no
// loss, no gradient and no part in the mean. What the mean divides by is added up first, unless it is m.
//
// Threads: as in softmax.cu (a team of threads takes a row and keeps it in registers, or reads a very long one twice),
// and teams walk on by the size of the grid; loss_sum.cuh tells how their sums are added. Where neighbouring rows are
// neighbours in memory, as pixels are, and there are more rows than columns, a thread takes a row by itself: so the
// threads of a warp read together.
// Least work for n scores of s bytes: the loss alone moves n s bytes, the gradient 2 n s, alone or with the loss, and
// each n s more for probabilities; it takes an exponential an element (for the gradient two, to keep fewer registers).
// A row that is not kept is read twice, but for the loss of a class index without smoothing. The memory is the limit.

#include <cmath>

#include "layout.cuh"
#include "loss_sum.cuh"
#include "rows.cuh"

namespace scratchcuda {

template <class T>
struct CrossEntropy {
    using A = Accumulator<T>;
    using Row = typename Matrix<T>::Row;
    Matrix<T> scores, targets, gradient;  // no data of the gradient, if it is not asked for
    const int64_t* indices;               // of classes, in place of targets; or null
    bool ignores;
    int64_t ignored;                       // the class index whose rows have no part in it
    const T *class_weights, *row_weights;  // or null
    int64_t index_stride, class_stride, row_stride;
    A unsmoothed, spread;  // 1 - eps, eps / C
    const T* delta;        // of each row, or one, or null
    Axis deltas;
    T* losses;  // of each row, or null
    LossSum<T> loss;

    // A row's effective targets tau. With a class index, `index` is its place: negative if it is no class, past the end
    // if it is ignored.
    template <bool weighs>
    struct Target {
        const CrossEntropy& call;
        Row row;
        bool by_index;
        int64_t index;
        A weight;  // of the row; 0 if it is ignored

        __device__ A operator[](int64_t j) const {
            const A t = by_index ? A(j == index) : widen(row[j]);
            if constexpr (!weighs) return t;
            if (by_index && call.spread == 0 && j != index) return 0;
            return weight * call.class_weight(j) * (call.unsmoothed * t + call.spread);
        }
        // Of an index, what is 0 has no part in the loss, whatever its score.
        __device__ A loss(A target, A log_p) const { return by_index && target == 0 ? 0 : -target * log_p; }
    };
    template <bool weighs>
    __device__ Target<weighs> target(int64_t i) const {
        const A weight = row_weights ? widen(row_weights[i * row_stride]) : A(1);
        if (!indices) return {*this, targets.row(i), false, 0, weight};
        const int64_t index = indices[i * index_stride], columns = scores.columns.length;
        if (ignores && index == ignored) return {*this, {}, true, columns, 0};
        return {*this, {}, true, index < columns ? index : -1, weight};
    }
    __device__ A class_weight(int64_t j) const { return class_weights ? widen(class_weights[j * class_stride]) : A(1); }
};

// What the mean divides by, where rows do not count alike.
template <class T>
struct Counting {
    CrossEntropy<T> call;
    LossSum<Accumulator<T>> loss;
};

template <class T>
__global__ void __launch_bounds__(block) count_rows(const __grid_constant__ Counting<T> counting) {
    using A = Accumulator<T>;
    overlap_launches();
    SharedMemory memory;
    const CrossEntropy<T>& call = counting.call;
    A count = 0;
    const int64_t step = int64_t(gridDim.x) * block;
    for (int64_t i = int64_t(blockIdx.x) * block + threadIdx.x; i < call.scores.rows.length; i += step) {
        const auto t = call.template target<true>(i);
        const bool picks = t.by_index && 0 <= t.index && t.index < call.scores.columns.length;
        count += picks ? t.weight * call.class_weight(t.index) : t.weight;
    }
    count = reduce<block>(count, Add{}, memory.take<A>(block / warp));
    if (threadIdx.x == 0) counting.loss.add_block(count);
}

// Returns this thread's part of the row's loss, and writes its part of the gradient.
template <class T, int team, int kept, bool weighs>
__device__ Accumulator<T> cross_entropy_row(const CrossEntropy<T>& call, int64_t i, Accumulator<T>* shared) {
    using A = Accumulator<T>;
    const int64_t columns = call.scores.columns.length;
    const auto z_row = call.scores.row(i);
    const auto t = call.template target<weighs>(i);
    Part<A, team, kept, typename CrossEntropy<T>::template Target<weighs>> target(t, columns, 0);
    Part<A, team, kept, typename Matrix<T>::Row> z(z_row, columns, -infinity<A>());
    ExponentialSum<A> total;
    A targets = 0, loss = 0;
    if constexpr (kept > 0) {
#pragma unroll
        for (int k = 0; k < kept; ++k) {
            total.largest = Maximum{}(total.largest, z.value[k]);
            targets += target.value[k];
        }
        total.largest = reduce<team>(total.largest, Maximum{}, shared);
#pragma unroll
        for (const A score : z.value) total.sum += std::exp(score - total.largest);
        total.sum = reduce<team>(total.sum, Add{}, shared);
    } else {
        each_column<team, kept>(columns, [&](int64_t j, int k) {
            total.add(z(j, k));
            targets += target(j, k);
        });
        total.template combine<team>(shared);
    }
    targets = reduce<team>(targets, Add{}, shared);
    if (t.index < 0) targets = loss = std::nan("");
    const A log_sum = std::log(total.sum);
    if constexpr (kept == 0) {
        if (!call.gradient.data && call.indices && call.spread == 0) {  // one score suffices
            if (threadIdx.x % team == 0 && 0 <= t.index && t.index < columns) {
                loss = t.loss(targets, widen(z_row[t.index]) - total.largest - log_sum);
            }
            return loss;
        }
    }
    const A above = call.delta ? widen(call.delta[call.deltas.offset(i)]) : A(1);
    const A scale = t.index < columns ? above / call.loss.count() : 0;
    const auto gradient = call.gradient.row(i);
    each_column<team, kept>(columns, [&](int64_t j, int k) {
        const A log_p = z(j, k) - total.largest - log_sum, target_j = target(j, k);
        loss += t.loss(target_j, log_p);
        if (call.gradient.data) gradient[j] = narrow<T>((std::exp(log_p) * targets - target_j) * scale);
    });
    return loss;
}

// Teams of less than a block share one.
template <int team>
constexpr int cross_entropy_threads = team > warp ? team : 8 * warp;

// Blocks that have to fit on a multiprocessor together. Values of 8 bytes take the registers of one.
template <class T, int kept, bool weighs>
constexpr int cross_entropy_fit = sizeof(T) == 8 ? 1
                                  : kept != 4    ? 2
                                  : weighs       ? 5
                                                 : 6;

template <class T, int team, int kept, bool weighs>
__global__ void __launch_bounds__(cross_entropy_threads<team>, (cross_entropy_fit<T, kept, weighs>))
    cross_entropy_rows(const __grid_constant__ CrossEntropy<T> call) {
    using A = Accumulator<T>;
    constexpr int threads = cross_entropy_threads<team>, teams = threads / team;
    overlap_launches();
    SharedMemory memory;
    A* shared = memory.take<A>(threads / warp);
    A loss = 0;
    const int64_t step = int64_t(gridDim.x) * teams;
    for (int64_t i = int64_t(blockIdx.x) * teams + threadIdx.x / team; i < call.scores.rows.length; i += step) {
        A row_loss = cross_entropy_row<T, team, kept, weighs>(call, i, shared);
        if (call.losses) {
            row_loss = reduce<team>(row_loss, Add{}, shared);
            if (threadIdx.x % team == 0) call.losses[i] = narrow<T>(row_loss);
        }
        loss += row_loss;
    }
    if (!call.loss.place.loss) return;
    loss = reduce<threads>(loss, Add{}, shared);
    if (threadIdx.x == 0) call.loss.add_block(loss);
}

static int class_dim(Tensor scores) { return std::min(1, scores.dims - 1); }

static int64_t row_count(Tensor scores) {
    int64_t rows = 1;
    for (int d = 0; d < scores.dims; ++d) rows *= d == class_dim(scores) ? 1 : scores.size[d];
    return rows;
}

static int64_t blocks_of(int64_t rows, int64_t rows_of_a_block) {
    return std::clamp<int64_t>((rows + rows_of_a_block - 1) / rows_of_a_block, 1, most_blocks);
}

static int64_t cross_entropy_blocks(Tensor scores) {
    const int64_t columns = scores.size[class_dim(scores)];
    constexpr int64_t rows_of_a_warp = 4;  // small ones are done in one launch
    return blocks_of(row_count(scores), columns <= 16 * warp ? cross_entropy_threads<warp> / warp * rows_of_a_warp : 1);
}

static int64_t counting_blocks(Tensor scores) { return blocks_of(row_count(scores), 16 * block); }

// Those of the loss, or, before it, those of the count.
static int64_t most_partials(Tensor scores, bool counts) {
    return std::max(partial_sums(cross_entropy_blocks(scores)), counts ? partial_sums(counting_blocks(scores)) : 0);
}

template <class T, int team, int kept>
cudaError_t launch_rows(const CrossEntropy<T>& call, bool weighs, int64_t blocks, cudaStream_t stream) {
    constexpr int threads = cross_entropy_threads<team>;
    return weighs ? launch_loss<T, cross_entropy_rows<T, team, kept, true>, threads>(call, blocks, stream)
                  : launch_loss<T, cross_entropy_rows<T, team, kept, false>, threads>(call, blocks, stream);
}

// Rows that do not count alike.
static bool counts_rows(Tensor y_true, const CrossEntropyOptions& options, const LossCall& asks) {
    const bool by_index = y_true.dtype == Dtype::int64;
    return asks.reduction == Reduction::mean &&
           (options.sample_weights || (by_index && (options.ignored || options.class_weights)));
}

cudaError_t cross_entropy(Tensor scores, Tensor y_true, CrossEntropyOptions options, LossCall asks, void* workspace,
                          cudaStream_t stream) {
    return dispatch(scores.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = Accumulator<T>;
        const int along = class_dim(scores);
        CrossEntropy<T> call{};
        if (!as_matrix(scores, call.scores, along)) return cudaErrorInvalidValue;
        const int64_t rows = call.scores.rows.length, columns = call.scores.columns.length;
        const int64_t blocks = cross_entropy_blocks(scores);
        if (y_true.dtype == Dtype::int64) {
            Matrix<int64_t> indices;
            if (!as_matrix(y_true, indices, y_true.dims)) return cudaErrorInvalidValue;
            call.indices = indices.data, call.index_stride = indices.rows.stride[0];
        } else if (!as_matrix(y_true, call.targets, along)) {
            return cudaErrorInvalidValue;
        }
        if (options.ignored) call.ignores = true, call.ignored = *options.ignored;
        const auto weights = [](const Tensor* tensor, const T*& data, int64_t& stride) {
            if (tensor) data = static_cast<const T*>(tensor->data), stride = tensor->stride[0];
        };
        weights(options.class_weights, call.class_weights, call.class_stride);
        weights(options.sample_weights, call.row_weights, call.row_stride);
        call.unsmoothed = static_cast<A>(1 - options.label_smoothing);
        call.spread = static_cast<A>(options.label_smoothing / columns);
        const bool weighs = options.class_weights || options.sample_weights || options.label_smoothing != 0;

        if (asks.gradient && !as_matrix(*asks.gradient, call.gradient, along)) return cudaErrorInvalidValue;
        if (asks.delta) {
            Matrix<const T> deltas;
            if (!as_matrix(*asks.delta, deltas, asks.delta->dims)) return cudaErrorInvalidValue;
            call.delta = deltas.data, call.deltas = deltas.rows;
        }
        A* const partials = static_cast<A*>(workspace);
        call.loss.partials = partials;
        call.loss.all = asks.reduction == Reduction::mean ? static_cast<A>(rows) : A(1);
        if (asks.loss && asks.reduction == Reduction::none) {
            call.losses = static_cast<T*>(asks.loss->data);
        } else if (asks.loss) {
            call.loss.place = place_of<T>(*asks.loss, asks.step);
        }
        if (counts_rows(y_true, options, asks)) {
            A* const counted = partials + most_partials(scores, true);
            const Counting<T> counting{call, {{counted, 1, 0, nullptr}, partials, 1, nullptr}};
            const cudaError_t error = launch_loss<A, count_rows<T>, block>(counting, counting_blocks(scores), stream);
            if (error != cudaSuccess) return error;
            call.loss.counted = counted;
        }
        if (rows > columns && call.scores.along_rows()) return launch_rows<T, 1, 0>(call, weighs, blocks, stream);
        if (columns <= 4 * warp) return launch_rows<T, warp, 4>(call, weighs, blocks, stream);
        if (columns <= 16 * warp) return launch_rows<T, warp, 16>(call, weighs, blocks, stream);
        if (columns <= 8 * block) return launch_rows<T, block, 8>(call, weighs, blocks, stream);
        return launch_rows<T, block, 0>(call, weighs, blocks, stream);
    });
}

int64_t cross_entropy_workspace_bytes(Tensor scores, Tensor y_true, CrossEntropyOptions options, LossCall asks) {
    const bool counts = counts_rows(y_true, options, asks);
    return (most_partials(scores, counts) + counts) * accumulator_bytes(scores.dtype);
}

}  // namespace scratchcuda
