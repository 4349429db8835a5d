// Elementwise losses: the values l(p, t) of n elements, or their sum or mean; and the gradient delta l'(p, t), over n
// if it is that of the mean, with delta that of what follows. Each loss has kernels of its own, which take the
// registers of its formulas alone: of value, of gradient, and of both in one pass over the data. Weights, and a delta
// of each element, are what other kernels take besides.
//
// Threads: as in activations.cu (a thread takes 16 bytes of elements at a time), and they walk on by the size of the
// grid; loss_sum.cuh tells how their sums are added. Weights that are broadcast have strides of 0, and then all is
// taken element by element. Least work for n elements of s bytes: 2 n s bytes moved for a sum, 3 n s for values or
// gradients, 4 n operations for the mean squared error with its gradient. The memory is the limit.

#include "layout.cuh"
#include "loss_sum.cuh"
#include "losses.cuh"

namespace scratchcuda {

enum class Asked { value, gradient, both };
enum Place { prediction, target, first_weight, of_delta = first_weight + most_weights, result };

template <class T, bool weighted>
struct LossElements {
    static constexpr int tensors = weighted ? result + 1 : 3;
    const T* in[tensors - 1];  // by Place; those of weights and delta may be null
    T* out;                    // values or gradients, or null
    Elements<tensors> elements;
    Accumulator<T> parameter, scale;
    const T* delta;  // () or null
    LossSum<T> loss;
};

template <class T, class F, Asked asked, bool weighted>
__global__ void __launch_bounds__(block) loss_elements(const __grid_constant__ LossElements<T, weighted> call) {
    using A = Accumulator<T>;
    constexpr int count = per_access<T>, inputs = LossElements<T, weighted>::tensors - 1;
    overlap_launches();
    SharedMemory memory;
    A sum = 0, scale = call.scale;
    if (asked == Asked::gradient && call.delta) scale *= widen(*call.delta);
    const int64_t step = int64_t(gridDim.x) * block * count;
    // The same elements whether packed or not, so that their sum is the same.
    for (int64_t first = (int64_t(blockIdx.x) * block + threadIdx.x) * count; first < call.elements.length;
         first += step) {
        take_elements<T>(call.elements, first, 1, [&](auto pack, const auto& at) {
            using Packed = decltype(pack);
            Packed in[inputs], out;
            for (int t = 0; t < inputs; ++t) {
                if (t <= target || call.in[t]) in[t] = *reinterpret_cast<const Packed*>(call.in[t] + at[t]);
            }
            for (int e = 0; e < Packed::count; ++e) {
                const auto operand = [&](int t) {  // what is not there is 1
                    if constexpr (weighted) {
                        if (call.in[t]) return widen(in[t].element[e]);
                    }
                    return A(1);
                };
                const A p = widen(in[prediction].element[e]), t = widen(in[target].element[e]);
                const A parameter = F::weights > 1 ? operand(first_weight + 1) : call.parameter;
                if constexpr (asked != Asked::gradient) {
                    const A value = F::value(p, t, parameter) * operand(first_weight);
                    if constexpr (asked == Asked::value) out.element[e] = narrow<T>(value);
                    sum += value;
                }
                if constexpr (asked != Asked::value) {
                    const A factor = scale * operand(first_weight) * operand(of_delta);
                    out.element[e] = narrow<T>(factor * F::gradient(p, t, parameter));
                }
            }
            if (asked != Asked::value || call.out) *reinterpret_cast<Packed*>(call.out + at[inputs]) = out;
        });
    }
    if (asked == Asked::gradient || !call.loss.place.loss) return;
    sum = reduce<block>(sum, Add{}, memory.take<A>(block / warp));
    if (threadIdx.x == 0) call.loss.add_block(sum);
}

static bool sums(const LossCall& call) { return call.loss && call.reduction != Reduction::none; }

static int64_t loss_blocks(Tensor y_pred, const LossCall& call) {
    const int64_t elements = product(y_pred.size, y_pred.dims);
    constexpr int64_t elements_of_a_block = 8192;  // small ones are done in one launch
    if (sums(call)) {
        return std::clamp<int64_t>((elements + elements_of_a_block - 1) / elements_of_a_block, 1, most_blocks);
    }
    const int64_t block_elements = block * 16 / element_bytes(y_pred.dtype);
    return (elements + block_elements - 1) / block_elements;
}

// Whether one element in memory is all.
static bool is_one(const Tensor& tensor) {
    for (int d = 0; d < tensor.dims; ++d) {
        if (tensor.size[d] != 1 && tensor.stride[d] != 0) return false;
    }
    return true;
}

// What is taken along but not asked for has the place of y_pred, which is not read there.
template <class F, Asked asked, bool weighted>
cudaError_t launch_asked(Tensor y_pred, Tensor y_true, const ElementwiseLoss& f, const LossCall& asks, void* workspace,
                         cudaStream_t stream) {
    const Tensor* const out = asks.gradient ? asks.gradient : sums(asks) ? nullptr : asks.loss;
    const bool one_delta = asks.delta && is_one(*asks.delta);
    const Tensor* tensors[] = {&y_pred, &y_true, f.weights[0], f.weights[1], one_delta ? nullptr : asks.delta};
    return dispatch(y_pred.dtype, [&](auto zero) {
        using T = decltype(zero);
        using A = Accumulator<T>;
        LossElements<T, weighted> call{};
        constexpr int inputs = call.tensors - 1;
        Tensor all[inputs + 1];
        for (int t = 0; t < inputs; ++t) {
            call.in[t] = tensors[t] ? static_cast<const T*>(tensors[t]->data) : nullptr;
            all[t] = tensors[t] ? *tensors[t] : y_pred;
        }
        all[inputs] = out ? *out : y_pred;
        call.out = out ? static_cast<T*>(out->data) : nullptr;
        if (!as_elements(all, call.elements)) return cudaErrorInvalidValue;
        const A terms = asks.reduction == Reduction::mean ? static_cast<A>(call.elements.length) : A(1);
        call.parameter = static_cast<A>(f.parameter);
        call.scale = A(F::factor) / terms;
        call.delta = one_delta ? static_cast<const T*>(asks.delta->data) : nullptr;
        if (sums(asks)) call.loss = {place_of<T>(*asks.loss, asks.step), static_cast<A*>(workspace), terms, nullptr};
        const int64_t blocks = loss_blocks(y_pred, asks);
        if (blocks == 0) return cudaSuccess;
        return launch_loss<T, loss_elements<T, F, asked, weighted>, block>(call, blocks, stream);
    });
}

template <class F>
cudaError_t launch_elements(Tensor y_pred, Tensor y_true, const ElementwiseLoss& f, const LossCall& asks,
                            void* workspace, cudaStream_t stream) {
    const auto launch = [&](auto launch_asked) { return launch_asked(y_pred, y_true, f, asks, workspace, stream); };
    const bool weighted = f.weights[0] || f.weights[1] || (asks.delta && !is_one(*asks.delta));
    if (!asks.loss) {
        return weighted ? launch(launch_asked<F, Asked::gradient, true>)
                        : launch(launch_asked<F, Asked::gradient, false>);
    }
    if (weighted) {
        if constexpr (F::weights > 0) return launch(launch_asked<F, Asked::value, true>);
    } else if (!asks.gradient) {
        return launch(launch_asked<F, Asked::value, false>);
    } else if constexpr (F::trains) {
        return launch(launch_asked<F, Asked::both, false>);
    }
    return cudaErrorInvalidValue;
}

template <class... F>
cudaError_t launch_loss_of(Tensor y_pred, Tensor y_true, const ElementwiseLoss& f, const LossCall& asks,
                           void* workspace, cudaStream_t stream, List<F...>) {
    constexpr decltype(&launch_elements<Mse>) launches[] = {launch_elements<F>...};
    return launches[f.index](y_pred, y_true, f, asks, workspace, stream);
}

cudaError_t elementwise_loss(Tensor y_pred, Tensor y_true, ElementwiseLoss f, LossCall call, void* workspace,
                             cudaStream_t stream) {
    return launch_loss_of(y_pred, y_true, f, call, workspace, stream, ElementwiseLosses{});
}

int64_t elementwise_loss_workspace_bytes(Tensor y_pred, const LossCall& call) {
    return sums(call) ? partial_sums(loss_blocks(y_pred, call)) * accumulator_bytes(y_pred.dtype) : 0;
}

}  // namespace scratchcuda
