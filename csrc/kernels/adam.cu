// One step of Adam on a list of tensors, as torch.optim.Adam and AdamW: g <- -g to maximize; g <- g + weight_decay p,
// or, decoupled, p <- (1 - lr weight_decay) p; m <- m + (1 - beta1) (g - m); v <- beta2 v + (1 - beta2) g^2; with
// amsgrad u <- max(u, v), which then stands for v in p <- p - lr / c1 m / (sqrt(v) / c2 + eps), with c1 = 1 -
// beta1^step and c2 = sqrt(1 - beta2^step).
//
// Threads: tensor_lists.cuh. Least work for n elements of s bytes: 7 n s bytes moved, 9 n s with amsgrad; 13 to 17
// operations an element, so the memory is the limit.

#include "tensor_lists.cuh"

namespace scratchcuda {

struct AdamUpdate {
    enum { g, m, v, u, p, operands };
    static constexpr int blocks = 4;

    double beta1, beta2, eps, weight_decay;
    bool decoupled, amsgrad, maximize;
    double step_size = 0, correction2 = 1, kept = 1;  // of this step: lr / c1, c2, and what a decoupled decay keeps

    __host__ __device__ void begin(double lr, double c1, double c2) {
        step_size = lr / c1, correction2 = c2;
        if (decoupled) kept = 1 - lr * weight_decay;
    }
    __device__ bool reads(int t) const { return t != u || amsgrad; }
    __device__ bool writes(int t) const { return t != g && (t != u || amsgrad); }
    __device__ void take(const double* rates, int64_t stride) { begin(rates[0], rates[stride], rates[2 * stride]); }

    template <class A>
    __device__ void apply(A (&of)[operands]) const {
        A grad = maximize ? -of[g] : of[g];
        // An infinite parameter does not become NaN for nothing.
        if (!decoupled && weight_decay != 0) grad += A(weight_decay) * of[p];
        const A change = grad - of[m], weight = A(1 - beta1);
        of[m] = weight < A(0.5) ? of[m] + weight * change : grad - A(beta1) * change;  // as torch.lerp
        of[v] = A(beta2) * of[v] + A(1 - beta2) * grad * grad;
        if (amsgrad && !(of[u] > of[v] || of[u] != of[u])) of[u] = of[v];  // NaN stays, as with torch.maximum
        const A root = std::sqrt(amsgrad ? of[u] : of[v]) / A(correction2);
        of[p] = A(kept) * of[p] - A(step_size) * of[m] / (root + A(eps));
    }
};

cudaError_t adam_update(AdamTensors tensors, Adam adam, StepRates rates, cudaStream_t stream) {
    AdamUpdate update{adam.beta1,   adam.beta2,   adam.eps, adam.weight_decay, adam.decoupled_weight_decay,
                      adam.amsgrad, adam.maximize};
    const auto step = static_cast<double>(adam.step);
    update.begin(adam.lr, 1 - std::pow(adam.beta1, step), std::sqrt(1 - std::pow(adam.beta2, step)));
    const Tensor* u = adam.amsgrad ? tensors.max_exp_avg_sqs : nullptr;
    const Lists<AdamUpdate::operands> lists{{tensors.grads, tensors.exp_avgs, tensors.exp_avg_sqs, u, tensors.params},
                                            tensors.count};
    return update_lists<128>(update, lists, rates, stream);
}

}  // namespace scratchcuda
