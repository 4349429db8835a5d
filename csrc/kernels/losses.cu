// Losses, each with its gradient in one pass over the data. Mean squared error of n elements: sum (p - t)^2 / n, and
// 2 (p - t) / n. Cross-entropy of m rows of scores z against probabilities t: log p_j = z_j - max - log sum_k
// exp(z_k - max), the loss is -sum t_j log p_j / m over all rows, the gradient (p_j sum_k t_k - t_j) / m. A class index
// stands for a row with a one in its place, and picks log p instead of multiplying: a score of -inf elsewhere is let
// alone. An index that is no class makes loss and gradient NaN. Where rows of one index are ignored, the mean is that
// of the others, which a kernel of one block counts first.
//
// Threads: as in activations.cu for mse (a thread takes 16 bytes of elements at a time) and as in softmax.cu for
// cross_entropy (a team of threads takes a row and keeps it in registers, or reads a very long one twice); both walk on
// by the size of the grid. Each block adds what its threads have summed, and a second kernel, of one block, adds the
// blocks' sums; the number of blocks is a matter of shape alone, so that a shape has the same sums everywhere.
// Least work for n elements of s bytes: 3 n s bytes moved, or 2 n s where targets are class indices; an exponential an
// element in cross-entropy (it takes two, to keep fewer registers). The memory is the limit.

#include <cmath>

#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "rows.cuh"

namespace scratchcuda {

constexpr int64_t most_blocks = 1024;

// One loss, or, with a step, that step's among the losses of an epoch; then the step is done. One thread comes here.
template <class T>
struct LossPlace {
    T* loss;
    int64_t length, stride;
    int64_t* step;

    __device__ void store(T value) const {
        const int64_t at = step ? (*step)++ : 0;
        if (at < length) loss[at * stride] = value;
    }
};

template <class T>
LossPlace<T> place_of(const Tensor& loss, const Tensor* step) {
    T* const data = static_cast<T*>(loss.data);
    if (!step) return {data, 1, 0, nullptr};
    return {data, loss.size[0], loss.stride[0], static_cast<int64_t*>(step->data)};
}

// Where the blocks' sums of a loss go: to its place, if there is one block.
template <class T>
struct LossSum {
    using A = Accumulator<T>;
    LossPlace<T> place;
    A* partials;
    A all;             // terms; the loss is the mean of
    const A* counted;  // these, if not null, and otherwise of all

    __device__ A count() const { return counted ? *counted : all; }

    __device__ void add_block(A sum) const {
        if (gridDim.x == 1) {
            place.store(narrow<T>(sum / count()));
        } else {
            partials[blockIdx.x] = sum;
        }
    }
};

template <class T>
__global__ void __launch_bounds__(block) add_blocks(const __grid_constant__ LossSum<T> loss, int blocks) {
    using A = Accumulator<T>;
    overlap_launches();
    SharedMemory memory;
    A sum = 0;
    for (int b = threadIdx.x; b < blocks; b += block) sum += loss.partials[b];
    sum = reduce<block>(sum, Add{}, memory.take<A>(block / warp));
    if (threadIdx.x == 0) loss.add_block(sum);
}

template <class T>
struct Mse {
    const T *y_pred, *y_true;
    T* gradient;
    Elements<3> elements;
    Accumulator<T> scale;
    LossSum<T> loss;
};

template <class T>
__global__ void __launch_bounds__(block) mse_elements(const __grid_constant__ Mse<T> mse) {
    using A = Accumulator<T>;
    constexpr int count = per_access<T>;
    overlap_launches();
    SharedMemory memory;
    A sum = 0;
    const int64_t step = int64_t(gridDim.x) * block * count;
    // The same elements whether packed or not, so that their sum is the same.
    for (int64_t first = (int64_t(blockIdx.x) * block + threadIdx.x) * count; first < mse.elements.length;
         first += step) {
        take_elements<T>(mse.elements, first, 1, [&](auto pack, const auto& at) {
            using Packed = decltype(pack);
            const Packed p = *reinterpret_cast<const Packed*>(mse.y_pred + at[0]);
            const Packed t = *reinterpret_cast<const Packed*>(mse.y_true + at[1]);
            Packed g;
            for (int e = 0; e < Packed::count; ++e) {
                const A difference = widen(p.element[e]) - widen(t.element[e]);
                g.element[e] = narrow<T>(mse.scale * difference);
                sum += difference * difference;
            }
            *reinterpret_cast<Packed*>(mse.gradient + at[2]) = g;
        });
    }
    sum = reduce<block>(sum, Add{}, memory.take<A>(block / warp));
    if (threadIdx.x == 0) mse.loss.add_block(sum);
}

template <class T>
struct CrossEntropy {
    Matrix<T> scores, targets, gradient;
    const int64_t* classes;  // or null
    int64_t classes_stride;
    bool ignores;
    int64_t ignored;  // the class index whose rows have no part in it
    LossSum<T> loss;

    // A row's targets; with a class index, `index` is its place: negative if it is no class, past the end if it is
    // ignored.
    struct Target {
        typename Matrix<T>::Row row;
        bool by_index;
        int64_t index;

        __device__ Accumulator<T> operator[](int64_t j) const {
            return by_index ? Accumulator<T>(j == index) : widen(row[j]);
        }
        __device__ Accumulator<T> loss(Accumulator<T> target, Accumulator<T> log_p) const {
            return by_index && target == 0 ? 0 : -target * log_p;
        }
    };
    __device__ Target target(int64_t i) const {
        if (!classes) return {targets.row(i), false, 0};
        const int64_t index = classes[i * classes_stride], columns = scores.columns.length;
        if (ignores && index == ignored) return {{}, true, columns};
        return {{}, true, index < columns ? index : -1};
    }
};

template <class T>
__global__ void __launch_bounds__(block)
    count_rows(const __grid_constant__ CrossEntropy<T> call, Accumulator<T>* counted) {
    overlap_launches();
    SharedMemory memory;
    int64_t count = 0;
    for (int64_t i = threadIdx.x; i < call.scores.rows.length; i += block) {
        count += call.target(i).index < call.scores.columns.length;
    }
    count = reduce<block>(count, Add{}, memory.take<int64_t>(block / warp));
    if (threadIdx.x == 0) *counted = static_cast<Accumulator<T>>(count);
}

// Returns this thread's part of the row's loss, and writes its part of the gradient.
template <class T, int team, int kept>
__device__ Accumulator<T> cross_entropy_row(const CrossEntropy<T>& call, int64_t i, Accumulator<T>* shared) {
    using A = Accumulator<T>;
    const int64_t columns = call.scores.columns.length;
    const auto z_row = call.scores.row(i), gradient = call.gradient.row(i);
    const auto t = call.target(i);
    Part<A, team, kept, typename CrossEntropy<T>::Target> target(t, columns, 0);
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
    const A log_sum = std::log(total.sum), count = call.loss.count(), scale = count > 0 ? 1 / count : 0;
    each_column<team, kept>(columns, [&](int64_t j, int k) {
        const A log_p = z(j, k) - total.largest - log_sum, target_j = target(j, k);
        loss += t.loss(target_j, log_p);
        gradient[j] = narrow<T>((std::exp(log_p) * targets - target_j) * scale);
    });
    return loss;
}

// Teams of a warp share a block.
template <int team>
constexpr int cross_entropy_threads = team > warp ? team : 8 * warp;

// Blocks that have to fit on a multiprocessor together. Values of 8 bytes take the registers of one.
template <class T, int kept>
constexpr int cross_entropy_fit = sizeof(T) == 8 ? 1 : (kept == 4 ? 6 : 2);

template <class T, int team, int kept>
__global__ void __launch_bounds__(cross_entropy_threads<team>, (cross_entropy_fit<T, kept>))
    cross_entropy_rows(const __grid_constant__ CrossEntropy<T> call) {
    using A = Accumulator<T>;
    constexpr int threads = cross_entropy_threads<team>, teams = threads / team;
    overlap_launches();
    SharedMemory memory;
    A* shared = memory.take<A>(threads / warp);
    A loss = 0;
    const int64_t step = int64_t(gridDim.x) * teams;
    for (int64_t i = int64_t(blockIdx.x) * teams + threadIdx.x / team; i < call.scores.rows.length; i += step) {
        loss += cross_entropy_row<T, team, kept>(call, i, shared);
    }
    loss = reduce<threads>(loss, Add{}, shared);
    if (threadIdx.x == 0) call.loss.add_block(loss);
}

static int64_t mse_blocks(int64_t elements) {
    constexpr int64_t elements_of_a_block = 8192;  // small ones are done in one launch
    return std::clamp<int64_t>((elements + elements_of_a_block - 1) / elements_of_a_block, 1, most_blocks);
}

static int64_t cross_entropy_blocks(int64_t rows, int64_t columns) {
    constexpr int64_t rows_of_a_warp = 4;  // the same
    const int64_t rows_of_a_block = columns <= 16 * warp ? cross_entropy_threads<warp> / warp * rows_of_a_warp : 1;
    return std::clamp<int64_t>((rows + rows_of_a_block - 1) / rows_of_a_block, 1, most_blocks);
}

static int64_t partial_sums(int64_t blocks) { return blocks > 1 ? blocks : 0; }

// Launches `kernel`, and what adds its blocks' sums.
template <class T, auto kernel, int threads, class Call>
cudaError_t launch_loss(const Call& call, int64_t blocks, cudaStream_t stream) {
    constexpr size_t warp_bytes = sizeof(Accumulator<T>);
    const cudaError_t error = launch<kernel, threads, threads / warp * warp_bytes>(blocks, 1, stream, call);
    if (error != cudaSuccess || blocks == 1) return error;
    return launch<add_blocks<T>, block, block / warp * warp_bytes>(1, 1, stream, call.loss, static_cast<int>(blocks));
}

template <class T, int team, int kept>
cudaError_t launch_rows(const CrossEntropy<T>& call, int64_t blocks, cudaStream_t stream) {
    return launch_loss<T, cross_entropy_rows<T, team, kept>, cross_entropy_threads<team>>(call, blocks, stream);
}

cudaError_t mse(Tensor y_pred, Tensor y_true, Tensor loss, const Tensor* step, Tensor gradient, void* workspace,
                cudaStream_t stream) {
    Elements<3> elements;
    if (!as_elements({y_pred, y_true, gradient}, elements)) return cudaErrorInvalidValue;
    return dispatch(y_pred.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = Accumulator<T>;
        const LossSum<T> sum{place_of<T>(loss, step), static_cast<A*>(workspace), static_cast<A>(elements.length),
                             nullptr};
        const Mse<T> call{static_cast<const T*>(y_pred.data),
                          static_cast<const T*>(y_true.data),
                          static_cast<T*>(gradient.data),
                          elements,
                          A(2) / sum.all,
                          sum};
        return launch_loss<T, mse_elements<T>, block>(call, mse_blocks(elements.length), stream);
    });
}

int64_t mse_workspace_bytes(Tensor y_pred) {
    return partial_sums(mse_blocks(product(y_pred.size, y_pred.dims))) * accumulator_bytes(y_pred.dtype);
}

cudaError_t cross_entropy(Tensor scores, Tensor y_true, const int64_t* ignored, Tensor loss, const Tensor* step,
                          Tensor gradient, void* workspace, cudaStream_t stream) {
    return dispatch(scores.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = Accumulator<T>;
        const int64_t rows = scores.size[0], columns = scores.size[1];
        CrossEntropy<T> call{};
        const int64_t blocks = cross_entropy_blocks(rows, columns);
        A* const partials = static_cast<A*>(workspace);
        call.loss = {place_of<T>(loss, step), partials, static_cast<A>(rows), nullptr};
        as_matrix(scores, call.scores);
        as_matrix(gradient, call.gradient);
        if (y_true.dims == 1) {
            call.classes = static_cast<const int64_t*>(y_true.data), call.classes_stride = y_true.stride[0];
        } else {
            as_matrix(y_true, call.targets);
        }
        if (ignored) {
            call.ignores = true, call.ignored = *ignored;
            A* const counted = partials + partial_sums(blocks);
            const cudaError_t error =
                launch<count_rows<T>, block, block / warp * sizeof(int64_t)>(1, 1, stream, call, counted);
            if (error != cudaSuccess) return error;
            call.loss.counted = counted;
        }
        if (columns <= 4 * warp) return launch_rows<T, warp, 4>(call, blocks, stream);
        if (columns <= 16 * warp) return launch_rows<T, warp, 16>(call, blocks, stream);
        if (columns <= 8 * block) return launch_rows<T, block, 8>(call, blocks, stream);
        return launch_rows<T, block, 0>(call, blocks, stream);
    });
}

int64_t cross_entropy_workspace_bytes(Tensor scores, const int64_t* ignored) {
    const int64_t sums = partial_sums(cross_entropy_blocks(scores.size[0], scores.size[1]));
    return (sums + (ignored ? 1 : 0)) * accumulator_bytes(scores.dtype);
}

}  // namespace scratchcuda
