"""What the registered ops refuse by themselves, in C++, from callers who come past the public functions."""

import math

import pytest
import torch
from oracle import same

X, W, B, DELTA, G = (torch.ones(shape, dtype=torch.float64) for shape in ((4, 5), (5, 3), (3,), (4, 3), (5, 3)))
X2, ORDER, STEP = X[:2].clone(), torch.arange(4), torch.tensor(0)
SGD = 0.1, 0.0, 0.0, 0.0, False, False, False

REFUSALS = [
    (
        "dense",
        (X.long(), W, B, "none"),
        "x has dtype torch.int64, expected torch.float64, torch.float32, torch.float16",
    ),
    ("dense", (X, W.float(), B, "none"), "w has dtype torch.float32, expected torch.float64 as x"),
    ("dense", (X, W, B.to("meta"), "none"), "b is on device meta, expected cpu as x"),
    ("dense", (X[:, :4], W, B, "none"), r"x has shape \(4, 4\), expected 5 features as its last dimension"),
    ("dense", (X, W[0], B, "none"), r"w has shape \(3,\), expected \(n_in, n_out\)"),
    ("dense", (X, W, B[:2], "none"), r"b has shape \(2,\), expected \(3,\)"),
    ("dense", (X, W, B, "swish"), "activation is 'swish', expected one of none, relu, sigmoid, tanh, softmax"),
    ("dense", (X, W, B, "relu", [0.5]), "activation_parameters has 1 numbers, expected 0 for relu"),
    ("dense_backward_input", (DELTA[:, :2], W), r"delta has shape \(4, 2\), expected 3 features"),
    ("dense_backward_input", (DELTA, B), r"w has shape \(3,\), expected \(n_in, n_out\)"),
    (
        "dense_backward_input",
        (DELTA, W, X, "softmax"),
        "activation is 'softmax', expected one of none, relu, sigmoid, tanh",
    ),
    ("dense_backward_input", (DELTA, W, None, "relu"), "a is None, expected the outputs of relu"),
    ("dense_backward_input", (DELTA, W, DELTA, "relu"), r"a has shape \(4, 3\), expected \(4, 5\)"),
    ("mse_step_", (DELTA, DELTA, B.float(), STEP), "losses has dtype torch.float32, expected torch.float64 as y_pred"),
    ("mse_step_", (DELTA, DELTA, W, STEP), r"losses has shape \(5, 3\), expected \(steps,\)"),
    ("mse_step_", (DELTA, DELTA, B[:1].expand(3), STEP), "losses is expanded"),
    ("cross_entropy_step_", (DELTA, DELTA, B, STEP.int()), "step has dtype torch.int32, expected torch.int64"),
    ("cross_entropy_step_", (DELTA, DELTA, B, ORDER), r"step has shape \(4,\), expected \(\)"),
    (
        "take_batch_",
        (X, DELTA, ORDER, STEP, 2, X[:2], DELTA[:2].clone()),
        "x_batch shares memory with x|x shares memory with x_batch",
    ),
    ("take_batch_", (X, DELTA, ORDER, STEP, 2, X2, X2), r"y_batch has shape \(2, 5\), expected \(2, 3\)"),
    ("take_batch_", (X, X, ORDER, STEP, 2, X2, X2.clone()[:1]), "y_batch has 1 rows, expected 2 as x_batch"),
    ("take_batch_", (X, X, ORDER, STEP, 0, X2, X2.clone()), "batch_size is 0, expected a positive integer"),
    ("take_batch_", (X, X, ORDER[None], STEP, 2, X2, X2.clone()), r"order has shape \(1, 4\), expected \(samples,\)"),
    ("take_batch_", (X.long(), X, ORDER, STEP, 2, X2.long(), X2), "x has dtype torch.int64"),
    ("take_batch_", (ORDER, X, ORDER, STEP, 2, ORDER[:2], X2), "x has dtype torch.int64"),
    ("take_batch_", (X, X.long(), ORDER, STEP, 2, X2, X2.long()), "y has dtype torch.int64"),
    ("take_batch_", (X, ORDER.clone(), ORDER, STEP, 2, X2, ORDER[:2]), "shares memory with"),
    ("take_batch_", (X, X[None], ORDER, STEP, 2, X2, X2), r"y has shape \(1, 4, 5\), expected one or two dimensions"),
    (
        "take_batch_",
        (X, X, ORDER, STEP, 2, X2.T.contiguous().T, X2),
        "x_batch has strides .*, expected contiguous memory",
    ),
    ("dense_backward_weights", (DELTA[:3], X), r"delta has shape \(3, 3\), expected \(..., n_out\) as x \(4, 5\)"),
    ("dense_update_", (DELTA, X, W.T, B, 0.1, 0.0), r"w has shape \(3, 5\), expected \(5, 3\)"),
    ("dense_update_", (DELTA, X, W[:1].expand(5, 3), B, 0.1, 0.0), r"w is expanded \(strides \(0, 1\)\)"),
    ("dense_update_", (DELTA, X, W, B, -1.0, 0.0), "lr is -1, expected a finite number of at least 0"),
    ("dense_update_", (DELTA, X, W, B, 0.1, math.nan), "weight_decay is nan, expected a finite"),
    ("tanh", (X.to(torch.complex64),), "z has dtype torch.complex64"),
    ("tanh_backward", (DELTA, X), r"a has shape \(4, 5\), expected \(4, 3\)"),
    ("softmax_backward", (DELTA, DELTA.bfloat16()), "a has dtype torch.bfloat16, expected torch.float64 as delta"),
    ("mse", (DELTA, DELTA[:, :1]), r"y_true has shape \(4, 1\), expected \(4, 3\)"),
    ("cross_entropy", (B, B), r"scores has shape \(3,\), expected \(m, classes\)"),
    ("cross_entropy", (DELTA, torch.zeros(3).long()), r"y_true has shape \(3,\), expected \(4,\)"),
    (
        "cross_entropy",
        (DELTA, torch.zeros(4).int()),
        "y_true has dtype torch.int32, expected torch.int64",
    ),
    ("cross_entropy", (DELTA, DELTA, 1), "ignore_index is 1, expected None with probabilities"),
    ("softmax", (DELTA, 2), r"dim is 2, expected one of the 2 of \(4, 3\)"),
    ("softmax_backward", (DELTA, DELTA, -3), r"dim is -3, expected one of the 2 of \(4, 3\)"),
    ("cross_entropy", (DELTA, X), r"y_true has shape \(4, 5\), expected \(4, 3\)"),
    ("sgd_update_", ([W], [], [], *SGD), "grads has 0 tensors, expected 1 as params"),
    ("sgd_update_", ([W, B], [W, W], [], *SGD), r"grads\[1\] has shape \(5, 3\), expected \(3,\)"),
    (
        "sgd_update_",
        ([W, B], [W, B.half()], [], *SGD),
        r"grads\[1\] has dtype torch.float16, expected torch.float64 as",
    ),
    ("sgd_update_", ([W, B.long()], [W, B], [], *SGD), r"params\[1\] has dtype torch.int64"),
    ("sgd_update_", ([W, W], [G, G], [], *SGD), r"params\[1\] shares memory with params\[0\]"),
    ("sgd_update_", ([W], [W], [], *SGD), r"grads\[0\] shares memory with params\[0\]"),
    ("sgd_update_", ([W], [G], [], 0.1, 0.0, 0.9, *SGD[3:]), "momentum_buffers has 0 tensors, expected 1 as params"),
    ("sgd_update_", ([W], [G], [W], 0.1, 0.0, 0.9, *SGD[3:]), r"momentum_buffers\[0\] shares memory with params\[0\]"),
    ("sgd_update_", ([W], [G], [], *SGD[:3], math.nan, *SGD[4:]), "dampening is nan, expected a finite number"),
    (
        "sgd_update_",
        ([W], [G], [], *SGD[:4], True, *SGD[5:]),
        "nesterov needs momentum and no dampening, got momentum 0",
    ),
    ("dense_update_", (X.view(-1)[:12].view(4, 3), X, W, X.view(-1)[9:12], 0.1, 0.0), "b shares memory with x"),
]


def refuses(raw, key, name, args, message):
    """Calls the implementation of this dispatch key, wherever the tensors are."""
    before = [t.clone() for t in (X, W, B, DELTA)]
    implementation = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    with pytest.raises(RuntimeError, match=message):
        getattr(raw, name).default.redispatch(implementation, *args)
    same([X, W, B, DELTA], before)
