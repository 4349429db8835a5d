// One step of stochastic gradient descent on a list of tensors, as torch.optim.SGD: g <- -g to maximize; g <- g +
// weight_decay p; with momentum, m <- momentum m + (1 - dampening) g (at first m <- g), then g <- m, or g + momentum m
// for Nesterov's; p <- p - lr g.
//
// Threads: one launch for all tensors, of any sizes and dtypes. A table of them travels as a parameter; a block finds
// its tensor by its number, and takes 16 bytes of elements a thread: consecutive ones, in one access to each of p, g
// and m, where all are one aligned run of memory in the same order; otherwise element by element at computed offsets.
// Least work for n elements of s bytes: 3 n s bytes moved, 5 n s with momentum; 2 to 8 operations an element, so the
// memory is the limit.

#include "instructions.cuh"
#include "launch.cuh"
#include "layout.cuh"
#include "types.cuh"

namespace scratchcuda {

constexpr int sgd_threads = 256;

template <int most_dims>
struct Update {
    void *p, *m;  // m is p where there is no momentum
    const void* g;
    Dtype dtype;
    Elements<3, most_dims> elements;  // of g, m and p
};

// Its size is bounded by that of a kernel's parameters, 32,764 bytes.
template <int most_tensors_, int most_dims_>
struct Table {
    static constexpr int most_tensors = most_tensors_, most_dims = most_dims_;
    Sgd sgd;
    int tensors = 0;
    int64_t first_block[most_tensors];
    Update<most_dims> update[most_tensors];
};

template <class A>
__device__ A descend(const Sgd& sgd, A p, A g, A& m) {
    if (sgd.maximize) g = -g;
    if (sgd.weight_decay != 0) g += A(sgd.weight_decay) * p;  // an infinite parameter does not become NaN for nothing
    if (sgd.momentum != 0) {
        m = sgd.is_first_step ? g : A(sgd.momentum) * m + A(1 - sgd.dampening) * g;
        g = sgd.nesterov ? g + A(sgd.momentum) * m : m;
    }
    return p - A(sgd.lr) * g;
}

template <class T, int most_dims>
__device__ void update_block(const Sgd& sgd, const Update<most_dims>& update, int64_t block_number) {
    using A = Accumulator<T>;
    T *p = static_cast<T*>(update.p), *m = static_cast<T*>(update.m);
    const T* g = static_cast<const T*>(update.g);
    // [=], which takes fewer registers than [&].
    take_block<T, sgd_threads>(update.elements, block_number, [=](auto pack, const auto& at) {
        using Packed = decltype(pack);
        Packed m_pack{};
        if (sgd.momentum != 0 && !sgd.is_first_step) m_pack = *reinterpret_cast<const Packed*>(m + at[1]);
        Packed p_pack = *reinterpret_cast<const Packed*>(p + at[2]);
        const Packed g_pack = *reinterpret_cast<const Packed*>(g + at[0]);
        for (int e = 0; e < Packed::count; ++e) {
            A m_value = widen(m_pack.element[e]);
            p_pack.element[e] = narrow<T>(descend<A>(sgd, widen(p_pack.element[e]), widen(g_pack.element[e]), m_value));
            m_pack.element[e] = narrow<T>(m_value);
        }
        if (sgd.momentum != 0) *reinterpret_cast<Packed*>(m + at[1]) = m_pack;
        *reinterpret_cast<Packed*>(p + at[2]) = p_pack;
    });
}

template <class Table>
__global__ void __launch_bounds__(sgd_threads) sgd_tensors(const __grid_constant__ Table table) {
    overlap_launches();
    int tensor = 0;  // the last one whose first block is not after this one
    for (int step = Table::most_tensors / 2; step > 0; step /= 2) {
        const int next = tensor + step;
        if (next < table.tensors && table.first_block[next] <= blockIdx.x) tensor = next;
    }
    const auto& update = table.update[tensor];
    const int64_t block_number = blockIdx.x - table.first_block[tensor];
    switch (update.dtype) {
        case Dtype::float64:
            return update_block<double>(table.sgd, update, block_number);
        case Dtype::float32:
            return update_block<float>(table.sgd, update, block_number);
        case Dtype::float16:
            return update_block<__half>(table.sgd, update, block_number);
        case Dtype::bfloat16:
            return update_block<__nv_bfloat16>(table.sgd, update, block_number);
        case Dtype::int64:
            return;
    }
}

// Launches for as many tensors at a time as the table holds.
template <class Table>
cudaError_t launch_sgd(const SgdTensors& tensors, const Sgd& sgd, cudaStream_t stream) {
    for (int64_t t = 0; t < tensors.count;) {
        Table table;
        table.sgd = sgd;
        int64_t blocks = 0;
        for (; t < tensors.count && table.tensors < Table::most_tensors; ++t) {
            const Tensor &p = tensors.params[t], &g = tensors.grads[t];
            const Tensor& m = sgd.momentum != 0 ? tensors.momentum_buffers[t] : p;
            auto& update = table.update[table.tensors];
            update.elements = {};
            as_elements({g, m, p}, update.elements);  // which fits, as sgd_update has seen
            if (update.elements.length == 0) continue;
            update.p = p.data, update.m = m.data, update.g = g.data, update.dtype = p.dtype;
            const int64_t block = sgd_threads * 16 / element_bytes(p.dtype);
            table.first_block[table.tensors++] = blocks;
            blocks += (update.elements.length + block - 1) / block;
        }
        if (blocks == 0) continue;
        const cudaError_t error = launch<sgd_tensors<Table>, sgd_threads>(blocks, 1, stream, table);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

cudaError_t sgd_update(SgdTensors tensors, Sgd sgd, cudaStream_t stream) {
    // Nearly all tensors are laid out as their gradients, or transposed against them: two dimensions serve.
    bool flat = true;
    for (int64_t t = 0; t < tensors.count; ++t) {
        const Tensor &p = tensors.params[t], &m = sgd.momentum != 0 ? tensors.momentum_buffers[t] : p;
        Elements<3> elements;
        if (!as_elements({tensors.grads[t], m, p}, elements)) return cudaErrorInvalidValue;
        flat &= elements.dims <= 2;
    }
    if (!flat) return launch_sgd<Table<32, max_dims>>(tensors, sgd, stream);
    if (tensors.count <= 32) return launch_sgd<Table<32, 2>>(tensors, sgd, stream);
    return launch_sgd<Table<256, 2>>(tensors, sgd, stream);
}

}  // namespace scratchcuda
