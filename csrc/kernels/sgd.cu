// One step of stochastic gradient descent on a list of tensors, as torch.optim.SGD: g <- -g to maximize; g <- g +
// weight_decay p; with momentum, m <- momentum m + (1 - dampening) g (at first m <- g), then g <- m, or g + momentum m
// for Nesterov's; p <- p - lr g.
//
// Threads: tensor_lists.cuh. Least work for n elements of s bytes: 3 n s bytes moved, 5 n s with momentum; 2 to 8
// operations an element, so the memory is the limit.

#include "tensor_lists.cuh"

namespace scratchcuda {

struct SgdUpdate : Sgd {
    enum { g, m, p, operands };
    static constexpr int blocks = 6;

    __device__ bool reads(int t) const { return t != m || (momentum != 0 && !is_first_step); }
    __device__ bool writes(int t) const { return t == p || (t == m && momentum != 0); }
    __device__ void take(const double* rates, int64_t) { lr = rates[0]; }

    template <class A>
    __device__ void apply(A (&of)[operands]) const {
        A grad = maximize ? -of[g] : of[g];
        // An infinite parameter does not become NaN for nothing.
        if (weight_decay != 0) grad += A(weight_decay) * of[p];
        if (momentum != 0) {
            of[m] = is_first_step ? grad : A(momentum) * of[m] + A(1 - dampening) * grad;
            grad = nesterov ? grad + A(momentum) * of[m] : of[m];
        }
        of[p] -= A(lr) * grad;
    }
};

cudaError_t sgd_update(SgdTensors tensors, Sgd sgd, StepRates rates, cudaStream_t stream) {
    const Tensor* m = sgd.momentum != 0 ? tensors.momentum_buffers : nullptr;
    const Lists<SgdUpdate::operands> lists{{tensors.grads, m, tensors.params}, tensors.count};
    return update_lists<256>(SgdUpdate{sgd}, lists, rates, stream);
}

}  // namespace scratchcuda
