// What the kernels offer: one launcher for each operation. A launcher takes tensors as memory with sizes and strides,
// and a stream; it knows nothing of torch, allocates no device memory and copies nothing. Its caller has checked the
// shapes, that all tensors are of one dtype on the stream's device, which is current, and that no element of an output
// shares memory with another; it has made the output. The launch's error is returned, and stays the last error for the
// caller to clear. cudaErrorInvalidValue alone means more than 16 dimensions that cannot be merged.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace scratchcuda {

enum class Dtype : int32_t { float64, float32, float16, bfloat16, int64 };

// One of those that activations.cuh lists, with its parameters in front; none, if negative.
constexpr int most_parameters = 2;
struct Activation {
    int32_t index = -1;
    double parameters[most_parameters] = {};
};

// Block tiles of the matrix product (matmul.cuh); `automatic` chooses by shape, the others are for tests.
enum class Tile : int32_t { automatic = -1, small, medium, large, thin };

// Strides count elements, may be 0 or negative, and are the caller's memory, as sizes are.
struct Tensor {
    void* data;
    Dtype dtype;
    int32_t dims;
    const int64_t* size;
    const int64_t* stride;
};

// a (..., n_out) = f(z), z (..., n_out) = x (..., n_in) w (n_in, n_out) + b (n_out,). b may be null, and so may z,
// which is stored if f' is a formula of it.
cudaError_t dense_forward(Tensor x, Tensor w, const Tensor* b, Tensor a, const Tensor* z, Activation f, Tile tile,
                          cudaStream_t stream);

// dx (..., n_in) = delta (..., n_out) w^T, or, with the outputs a (..., n_in) of an activation f below (its inputs, if
// f' is a formula of these), times f' there.
cudaError_t dense_backward_input(Tensor delta, Tensor w, const Tensor* a, Activation f, Tensor dx, Tile tile,
                                 cudaStream_t stream);

// dw (n_in, n_out) = x^T delta, db (n_out,) = the sum of delta's rows. `workspace` has the bytes that
// dense_workspace_bytes tells, aligned to 16; it may be null where they are 0.
cudaError_t dense_backward_weights(Tensor delta, Tensor x, Tensor dw, Tensor db, void* workspace, Tile tile,
                                   cudaStream_t stream);

// w <- w - lr (x^T delta + weight_decay w), b <- b - lr (the sum of delta's rows), with no gradient stored. b may be
// null.
cudaError_t dense_update(Tensor delta, Tensor x, Tensor w, const Tensor* b, double lr, double weight_decay,
                         void* workspace, Tile tile, cudaStream_t stream);

int64_t dense_workspace_bytes(Tensor delta, Tensor x, Tile tile);

// Elementwise on tensors of one shape, f not none: a = f(z), and dz = delta f'(z), where `value` is a, or z if f' is a
// formula of z.
cudaError_t activation_forward(Tensor z, Tensor a, Activation f, cudaStream_t stream);
cudaError_t activation_backward(Tensor delta, Tensor value, Tensor dz, Activation f, cudaStream_t stream);

// Over the last dimension. The output may be the input.
cudaError_t softmax_forward(Tensor z, Tensor a, cudaStream_t stream);
cudaError_t softmax_backward(Tensor delta, Tensor a, Tensor dz, cudaStream_t stream);

// out = x noise, of one shape.
cudaError_t dropout(Tensor x, Tensor noise, Tensor out, cudaStream_t stream);

// What is asked of a loss, as torch's reductions have it; what is null is not asked for. With `step`, an int64 () on
// the device, `loss` is that of all steps (steps,): it gets the loss at this place, if there is one, and `step` is
// incremented. A launcher's `workspace` has the bytes that its ..._workspace_bytes tells, aligned to 8; it may be null
// where they are 0.
enum class Reduction : int32_t { none, mean, sum };
struct LossCall {
    Reduction reduction = Reduction::mean;
    const Tensor* loss = nullptr;  // (), or, without reduction, of each element or row
    const Tensor* step = nullptr;
    const Tensor* gradient = nullptr;  // with respect to the first tensor, of its shape
    const Tensor* delta = nullptr;     // the gradient with respect to the loss, of its shape; null is 1
};

// One of those that losses.cuh lists, with its parameter, and its weights of y_pred's shape: those of the values, and
// those of positive targets. What is null is 1.
constexpr int most_weights = 2;
struct ElementwiseLoss {
    int32_t index;
    double parameter = 0;
    const Tensor* weights[most_weights] = {};
};

// y_pred, y_true of one shape. A step, and loss and gradient in one, are for losses that a model trains with.
cudaError_t elementwise_loss(Tensor y_pred, Tensor y_true, ElementwiseLoss f, LossCall call, void* workspace,
                             cudaStream_t stream);
int64_t elementwise_loss_workspace_bytes(Tensor y_pred, const LossCall& call);

// Rows of the class index *ignored have no part. Weights are class_weights (classes,), and sample_weights (m,) where
// scores are (m, classes). What is null is not there; smoothing is from 0 to 1.
struct CrossEntropyOptions {
    const int64_t* ignored = nullptr;
    const Tensor *class_weights = nullptr, *sample_weights = nullptr;
    double label_smoothing = 0;
};

// scores (m, classes), (n, classes, d...) or (classes,); y_true of their shape, or class indices, of that without
// classes, of int64, one stride apart: so are the losses without reduction, and deltas in any strides.
cudaError_t cross_entropy(Tensor scores, Tensor y_true, CrossEntropyOptions options, LossCall asks, void* workspace,
                          cudaStream_t stream);
int64_t cross_entropy_workspace_bytes(Tensor scores, Tensor y_true, CrossEntropyOptions options, LossCall asks);

// x_batch (m, ...) = x[order[step * batch_size + i]], i < m, and the same of y; `step` () and `order` (samples,) are of
// int64. Of one or two dimensions and any dtype. Rows beyond the end of `order`, or that are not in x, are left as they
// are.
cudaError_t take_batch(Tensor x, Tensor y, Tensor order, Tensor step, int64_t batch_size, Tensor x_batch,
                       Tensor y_batch, cudaStream_t stream);

// The numbers of all steps (steps, numbers), of float64, and which one is next (), of int64, from 1: its row stands for
// those of the options, and where there is none, nothing is updated. Both null: the options' serve.
struct StepRates {
    const Tensor *rates = nullptr, *turn = nullptr;
};

// The options of torch.optim.SGD. Its rates: lr.
struct Sgd {
    double lr, weight_decay, momentum, dampening;
    bool nesterov, maximize;
    bool is_first_step;  // the momentum buffers hold nothing yet
};

// Of each parameter, its gradient and, if there is momentum, its buffer have its shape and dtype.
struct SgdTensors {
    const Tensor *params, *grads, *momentum_buffers;
    int64_t count;
};

cudaError_t sgd_update(SgdTensors tensors, Sgd sgd, StepRates rates, cudaStream_t stream);

// The options of torch.optim.Adam, with the number of the step, from 1. Its rates: lr, 1 - beta1^step, and
// sqrt(1 - beta2^step).
struct Adam {
    double lr, beta1, beta2, eps, weight_decay;
    bool decoupled_weight_decay, amsgrad, maximize;
    int64_t step;
};

// Of each parameter, its gradient, averages and, with amsgrad, their maximum have its shape and dtype.
struct AdamTensors {
    const Tensor *params, *grads, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs;
    int64_t count;
};

cudaError_t adam_update(AdamTensors tensors, Adam adam, StepRates rates, cudaStream_t stream);

}  // namespace scratchcuda
