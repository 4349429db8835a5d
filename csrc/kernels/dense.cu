// The dense layer: a = f(x w + b), and backward, from delta = dL/d(x w + b): dx = delta w^T, or, where x = g(z), dz =
// (delta w^T) g'(z), dw = x^T delta, db = the sum of delta's rows, and the update w <- w - lr (dw + decay w), b <- b -
// lr db, which stores neither dw nor db.
//
// Threads: as matmul.cuh says; these are its epilogues. The gradient of the parameters is a product with few outputs
// and many terms when a batch is large and a layer small: then the rows of the batch are shared out to several blocks,
// each writes its partial sums, and a second kernel adds these in order, a thread an output.
//
// An activation whose derivative is in terms of its input z = x w + b has epilogues of its own, instantiations beside
// those of the others, which so take no more registers. The forward of a training step stores z beside a, from the one
// launch: m o s bytes more, which its backward reads in the place of a. Without a backward z is not kept. The layer
// above reads a, so a plan keeps both.
//
// Least work for x (m, i), w (i, o) of s bytes an element: each product takes 2 m i o operations, and moves (m i + i o
// + m o) s bytes. Bias, activation, column sums and update add no bytes but the bias, and read w once; g' reads x.

#include "activations.cuh"
#include "matmul.cuh"

namespace scratchcuda {

// Of x w: adds the bias, if there is one, applies f, stores; if f' is in terms of the input, stores that in `values`,
// if these are there. Of delta w^T, backward: multiplies by f' in terms of `values`, f's outputs or inputs.
template <class T, bool of_input>
struct StoreOutput {
    static constexpr bool column_sums = false;
    Matrix<T> out;
    const T* bias;
    int64_t bias_stride;
    Matrix<T> values;
    bool backward;
    Chosen<Accumulator<T>, of_input> f;
    bool along_rows;

    __device__ void operator()(int64_t i, int64_t j, Accumulator<T> value) const {
        if (backward) {  // rounded before, so that the bits are those of two kernels
            value = f.backward(widen(narrow<T>(value)), widen(values.at(i, j)));
        } else {
            if (bias) value += widen(bias[j * bias_stride]);
            if constexpr (of_input) {  // for the same reason, and the same without a backward to come
                const T z = narrow<T>(value);
                if (values.data) values.at(i, j) = z;
                value = widen(z);
            }
            value = f.forward(value);
        }
        out.at(i, j) = narrow<T>(value);
    }
};

// Of x^T delta, with its column sums: stores the gradients, or updates the parameters by them, or, while the sums are
// partial, keeps them for add_partials. In the workspace, each split has the (i, o) sums, then the o column sums, if
// there is a bias: without one they are summed for nothing, which spares half as many kernels again.
template <class T>
struct TakeGradient {
    static constexpr bool column_sums = true;
    Matrix<T> w;
    T* b;
    int64_t b_stride;
    bool updates;
    Accumulator<T> lr, weight_decay;
    bool along_rows;
    Accumulator<T>* partials;

    __device__ int64_t outputs() const { return (w.rows.length + (b != nullptr)) * w.columns.length; }

    __device__ void operator()(int64_t i, int64_t j, Accumulator<T> gradient) const {
        if (partials) {
            partials[blockIdx.y * outputs() + i * w.columns.length + j] = gradient;
        } else {
            take(w.at(i, j), gradient, weight_decay);
        }
    }

    __device__ void column_sum(int64_t j, Accumulator<T> gradient) const {
        if (!b) return;  // asked here, it takes no register
        if (partials) {
            partials[blockIdx.y * outputs() + w.rows.length * w.columns.length + j] = gradient;
        } else {
            take(b[j * b_stride], gradient, 0);
        }
    }

    __device__ void take(T& parameter, Accumulator<T> gradient, Accumulator<T> decay) const {
        if (updates) {
            const Accumulator<T> p = widen(parameter);
            if (decay != 0) gradient += decay * p;  // an infinite parameter does not become NaN for nothing
            gradient = p - lr * gradient;
        }
        parameter = narrow<T>(gradient);
    }
};

constexpr int adding_threads = 256;

template <class T>
__global__ void __launch_bounds__(adding_threads)
    add_partials(const __grid_constant__ TakeGradient<T> take, const Accumulator<T>* partials, int splits) {
    overlap_launches();
    const int64_t at = int64_t(blockIdx.x) * adding_threads + threadIdx.x, n = take.w.columns.length;
    if (at >= take.outputs()) return;
    Accumulator<T> sum = 0;
    for (int split = 0; split < splits; ++split) sum += partials[split * take.outputs() + at];
    const int64_t i = at / n, j = at % n;
    if (i < take.w.rows.length) {
        take(i, j, sum);
    } else {
        take.column_sum(j, sum);
    }
}

// How many blocks share out the rows of the batch, m. By shape alone, so that a shape has the same sums everywhere.
static int64_t splits(int64_t m, int64_t n_in, int64_t n_out, Tile tile) {
    constexpr int64_t least_rows = 512;  // a guess, until a GPU says how many are worth the second kernel
    const int64_t room = enough_blocks / std::max<int64_t>(1, tiles(tile, n_in, n_out));
    return std::max<int64_t>(1, std::min(room, m / least_rows));
}

// f(x w + b), whose input goes into `values`, if they are there; or, backward, x w^T, times f' where there are values
// of f.
template <bool of_input>
static cudaError_t launch_product(const Tensor& x, const Tensor& w, bool backward, const Tensor* b,
                                  const Tensor* values, const Tensor& out, const Activation& f, Tile tile,
                                  cudaStream_t stream) {
    return dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        Matrix<T> a, factor;
        StoreOutput<T, of_input> store{{},   nullptr, 0, {}, backward && values, Chosen<Accumulator<T>, of_input>(f),
                                       false};
        if (!as_matrix(x, a) || !as_matrix(w, factor) || !as_matrix(out, store.out)) return cudaErrorInvalidValue;
        if (values && !as_matrix(*values, store.values)) return cudaErrorInvalidValue;
        if (b) store.bias = static_cast<const T*>(b->data), store.bias_stride = b->stride[0];
        store.along_rows = store.out.along_rows();
        if (backward) factor = factor.transposed();
        const int64_t m = a.rows.length, n = factor.columns.length;
        if (m == 0 || n == 0) return cudaSuccess;
        return launch_matmul(choose_tile(tile, m, n), a, factor, 1, store, stream);
    });
}

static cudaError_t launch_gradient(const Tensor& delta, const Tensor& x, const Tensor& w, const Tensor* b, bool updates,
                                   double lr, double weight_decay, void* workspace, Tile tile, cudaStream_t stream) {
    return dispatch(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = Accumulator<T>;
        Matrix<T> left, right, out;
        if (!as_matrix(x, left) || !as_matrix(delta, right) || !as_matrix(w, out)) return cudaErrorInvalidValue;
        const int64_t m = left.rows.length, n_in = out.rows.length, n_out = out.columns.length;
        if (n_out == 0) return cudaSuccess;
        tile = choose_tile(tile, n_in, n_out);
        const int64_t parts = splits(m, n_in, n_out, tile);
        A* partials = parts > 1 ? static_cast<A*>(workspace) : nullptr;  // of which neighbours lie along the columns
        const bool along_rows = !partials && out.along_rows();
        TakeGradient<T> take{out, nullptr, 0, updates, A(lr), A(weight_decay), along_rows, partials};
        if (b) take.b = static_cast<T*>(b->data), take.b_stride = b->stride[0];
        const cudaError_t error = launch_matmul(tile, left.transposed(), right, parts, take, stream);
        if (error != cudaSuccess || parts == 1) return error;
        take.partials = nullptr;
        const int64_t blocks = (take.outputs() + adding_threads - 1) / adding_threads;
        return launch<add_partials<T>, adding_threads>(blocks, 1, stream, take, partials, static_cast<int>(parts));
    });
}

cudaError_t dense_forward(Tensor x, Tensor w, const Tensor* b, Tensor a, const Tensor* z, Activation f, Tile tile,
                          cudaStream_t stream) {
    const auto launch = derives_from_input(f, Activations{}) ? launch_product<true> : launch_product<false>;
    return launch(x, w, false, b, z, a, f, tile, stream);
}

cudaError_t dense_backward_input(Tensor delta, Tensor w, const Tensor* a, Activation f, Tensor dx, Tile tile,
                                 cudaStream_t stream) {
    const auto launch = derives_from_input(f, Activations{}) ? launch_product<true> : launch_product<false>;
    return launch(delta, w, true, nullptr, a, dx, f, tile, stream);
}

cudaError_t dense_backward_weights(Tensor delta, Tensor x, Tensor dw, Tensor db, void* workspace, Tile tile,
                                   cudaStream_t stream) {
    return launch_gradient(delta, x, dw, &db, false, 0, 0, workspace, tile, stream);
}

cudaError_t dense_update(Tensor delta, Tensor x, Tensor w, const Tensor* b, double lr, double weight_decay,
                         void* workspace, Tile tile, cudaStream_t stream) {
    return launch_gradient(delta, x, w, b, true, lr, weight_decay, workspace, tile, stream);
}

int64_t dense_workspace_bytes(Tensor delta, Tensor x, Tile tile) {
    const int64_t n_in = x.size[x.dims - 1], n_out = delta.size[delta.dims - 1];
    const int64_t parts = splits(product(x.size, x.dims - 1), n_in, n_out, choose_tile(tile, n_in, n_out));
    return parts > 1 ? parts * (n_in + 1) * n_out * accumulator_bytes(x.dtype) : 0;
}

}  // namespace scratchcuda
