"""The operations: one table of schemas, and a checked public function for each.

A reader follows one chain: the public function here, then what serves it. That is its twin in
:mod:`scratchcuda.tensor_ops`, called directly, with no dispatcher in between; or, on the backend "emulator", its kernel
(:mod:`scratchcuda._emulator`, then ``csrc/kernels``). The twins are also registered as ``torch.ops.scratchcuda.*``,
from :data:`SCHEMAS`. Those raw ops are private, because an op without an autograd formula loses gradients silently,
while the public functions are differentiable.

All tensors of a call share one floating-point dtype and one device; any strides will do. A wrong dtype raises
TypeError, everything else that does not fit raises ValueError, before anything is written.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scratchcuda import _backend, _checks, _emulator, tensor_ops

SCHEMAS = {
    "dense": "(Tensor x, Tensor w, Tensor b, str activation) -> Tensor",
    "dense_backward_input": "(Tensor delta, Tensor w) -> Tensor",
    "dense_backward_weights": "(Tensor delta, Tensor x) -> (Tensor, Tensor)",
    "dense_update_": "(Tensor delta, Tensor x, Tensor(a!) w, Tensor(b!) b, float lr, float weight_decay) -> ()",
    "relu": "(Tensor z) -> Tensor",
    "sigmoid": "(Tensor z) -> Tensor",
    "tanh": "(Tensor z) -> Tensor",
    "softmax": "(Tensor z) -> Tensor",
    "relu_backward": "(Tensor delta, Tensor a) -> Tensor",
    "sigmoid_backward": "(Tensor delta, Tensor a) -> Tensor",
    "tanh_backward": "(Tensor delta, Tensor a) -> Tensor",
    "softmax_backward": "(Tensor delta, Tensor a) -> Tensor",
    "mse": "(Tensor y_pred, Tensor y_true) -> (Tensor, Tensor)",
    "cross_entropy": "(Tensor scores, Tensor y_true) -> (Tensor, Tensor)",
    "sgd_update_": "(Tensor(a!)[] params, Tensor[] grads, float lr, float weight_decay) -> ()",
}

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "softmax")

_library = torch.library.Library("scratchcuda", "DEF")
for _name, _schema in SCHEMAS.items():
    _twin = getattr(tensor_ops, _name)
    _library.define(_name + _schema)
    _library.impl(_name, _twin, "CompositeExplicitAutograd")
    # A twin is written in tensor operations, so that it computes shapes as well as values.
    torch.library.register_fake(f"scratchcuda::{_name}", _twin, lib=_library)


def dense(x: Tensor, w: Tensor, b: Tensor, activation: str = "none") -> Tensor:
    """A dense layer, ``f(x w + b)``.

    Args:
        x: input (..., n_in).
        w: weights (n_in, n_out); ``linear.weight.T`` goes in as it is.
        b: bias (n_out,).
        activation: one of :data:`ACTIVATIONS`; softmax runs over the last dimension.

    Returns:
        (..., n_out).
    """
    _checks.floating("x", x)
    _weights("x", x, w)
    _checks.features("x", x, w.shape[0])
    _checks.alike("b", b, "x", x)
    _checks.shape("b", b, (w.shape[1],))
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    return _serving("dense", x, w, b)(x, w, b, activation)


def dense_backward_input(delta: Tensor, w: Tensor) -> Tensor:
    """The gradient of ``z = x w + b`` with respect to x, ``delta w^T``.

    Args:
        delta: gradient with respect to z (..., n_out).
        w: the weights of the forward (n_in, n_out).

    Returns:
        (..., n_in).
    """
    _checks.floating("delta", delta)
    _weights("delta", delta, w)
    _checks.features("delta", delta, w.shape[1])
    return _serving("dense_backward_input", delta, w)(delta, w)


def dense_backward_weights(delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``z = x w + b`` with respect to w and b.

    Args:
        delta: gradient with respect to z (..., n_out).
        x: the input of the forward (..., n_in).

    Returns:
        ``x^T delta`` (n_in, n_out), and the sum of delta's rows (n_out,).
    """
    _rows(delta, x)
    return _serving("dense_backward_weights", delta, x)(delta, x)


def dense_update_(delta: Tensor, x: Tensor, w: Tensor, b: Tensor, lr: float, weight_decay: float = 0.0) -> None:
    """One step of gradient descent on w and b in place, with the gradients of :func:`dense_backward_weights`.

    ``w <- w - lr (x^T delta + weight_decay w)``, and ``b <- b - lr sum(delta)``, which does not decay.

    Args:
        delta: gradient with respect to ``z = x w + b`` (..., n_out).
        x: the input of the forward (..., n_in).
        w: weights (n_in, n_out).
        b: bias (n_out,).
        lr: learning rate, finite, at least 0.
        weight_decay: factor of the L2 penalty on w, finite, at least 0.
    """
    _rows(delta, x)
    _checks.alike("w", w, "delta", delta)
    _checks.alike("b", b, "delta", delta)
    _checks.shape("w", w, (x.shape[-1], delta.shape[-1]))
    _checks.shape("b", b, (delta.shape[-1],))
    _checks.writable("w", w)
    _checks.writable("b", b)
    lr, weight_decay = _checks.non_negative("lr", lr), _checks.non_negative("weight_decay", weight_decay)
    _serving("dense_update_", delta, x, w, b)(delta, x, w, b, lr, weight_decay)


def relu(z: Tensor) -> Tensor:
    """``max(z, 0)``, any shape."""
    _checks.floating("z", z)
    return _serving("relu", z)(z)


def sigmoid(z: Tensor) -> Tensor:
    """``1 / (1 + exp(-z))``, any shape."""
    _checks.floating("z", z)
    return _serving("sigmoid", z)(z)


def tanh(z: Tensor) -> Tensor:
    """``tanh(z)``, any shape."""
    _checks.floating("z", z)
    return _serving("tanh", z)(z)


def softmax(z: Tensor) -> Tensor:
    """``exp(z_i) / sum_j exp(z_j)`` over the last dimension, any shape."""
    _checks.floating("z", z)
    return _serving("softmax", z)(z)


def relu_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta`` where ``a > 0``, else 0, with ``a = relu(z)``; both of one shape."""
    _outputs(delta, a)
    return _serving("relu_backward", delta, a)(delta, a)


def sigmoid_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta a (1 - a)``, with ``a = sigmoid(z)``; both of one shape."""
    _outputs(delta, a)
    return _serving("sigmoid_backward", delta, a)(delta, a)


def tanh_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta (1 - a^2)``, with ``a = tanh(z)``; both of one shape."""
    _outputs(delta, a)
    return _serving("tanh_backward", delta, a)(delta, a)


def softmax_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``a (delta - sum(delta a))``, sums over the last dimension, with ``a = softmax(z)``; both of one shape."""
    _outputs(delta, a)
    return _serving("softmax_backward", delta, a)(delta, a)


def mse(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over all elements, and its gradient, as torch.nn.MSELoss.

    Args:
        y_pred: predictions, any shape.
        y_true: targets of the same shape.

    Returns:
        the loss (), and its gradient with respect to y_pred.
    """
    _checks.floating("y_pred", y_pred)
    _checks.alike("y_true", y_true, "y_pred", y_pred)
    _checks.shape("y_true", y_true, tuple(y_pred.shape))
    return _serving("mse", y_pred, y_true)(y_pred, y_true)


def cross_entropy(scores: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(scores), mean over the rows, and its gradient, as torch.nn.CrossEntropyLoss.

    Args:
        scores: unnormalised log-probabilities (m, classes).
        y_true: probabilities (m, classes), or class indices (m,) of an integer dtype.

    Returns:
        the loss (), and its gradient with respect to scores (m, classes).
    """
    _checks.floating("scores", scores)
    _checks.tensor("y_true", y_true)
    if scores.dim() != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected (m, classes)")
    if y_true.dim() == 1:
        _checks.on_device("y_true", y_true, "scores", scores.device)
        _checks.same_length("y_true", y_true, "scores", scores)
        _checks.class_indices("y_true", y_true, scores.shape[1])
        return _serving("cross_entropy", scores)(scores, y_true.long())
    _checks.alike("y_true", y_true, "scores", scores)
    _checks.shape("y_true", y_true, tuple(scores.shape))
    return _serving("cross_entropy", scores, y_true)(scores, y_true)


def sgd_update_(params: list[Tensor], grads: list[Tensor], lr: float, weight_decay: float = 0.0) -> None:
    """One step of stochastic gradient descent in place, ``p <- p - lr (g + weight_decay p)``, as torch.optim.SGD.

    Args:
        params: tensors to update, of any sizes.
        grads: one gradient for each, of its shape.
        lr: learning rate, finite, at least 0.
        weight_decay: factor of the L2 penalty, finite, at least 0.
    """
    if len(params) != len(grads):
        raise ValueError(f"grads has {len(grads)} tensors, expected {len(params)} as params")
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        _checks.floating(f"params[{i}]", p)
        _checks.alike(f"grads[{i}]", g, f"params[{i}]", p)
        _checks.shape(f"grads[{i}]", g, tuple(p.shape))
    lr, weight_decay = _checks.non_negative("lr", lr), _checks.non_negative("weight_decay", weight_decay)
    _serving("sgd_update_", *params, *grads)(params, grads, lr, weight_decay)


def _serving(name: str, *tensors: Tensor) -> Callable[..., Any]:
    """What computes the op on the backend in use."""
    if _backend.current == "emulator":
        return _emulator.serving(name, *tensors)
    return getattr(tensor_ops, name)


def _rows(delta: Tensor, x: Tensor) -> None:
    _checks.floating("delta", delta)
    _checks.alike("x", x, "delta", delta)
    if x.dim() == 0 or delta.shape[:-1] != x.shape[:-1] or delta.dim() != x.dim():
        raise ValueError(
            f"delta has shape {tuple(delta.shape)}, expected {(*x.shape[:-1], 'n_out')} as x {tuple(x.shape)}"
        )


def _weights(name: str, other: Tensor, w: Tensor) -> None:
    _checks.alike("w", w, name, other)
    if w.dim() != 2:
        raise ValueError(f"w has shape {tuple(w.shape)}, expected (n_in, n_out)")


def _outputs(delta: Tensor, a: Tensor) -> None:
    _checks.floating("delta", delta)
    _checks.alike("a", a, "delta", delta)
    _checks.shape("a", a, tuple(delta.shape))
