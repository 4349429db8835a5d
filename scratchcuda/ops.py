"""The operations: a checked, public function for each.

A reader follows one chain: the schema (:mod:`scratchcuda._library`), the public function here, then what serves it for
the tensors at hand (:mod:`scratchcuda._backend`): its twin in :mod:`scratchcuda.tensor_ops`, called directly, with no
dispatcher in between; or the registered op in ``csrc/ops``, which launches its kernel in ``csrc/kernels``, for CUDA
tensors and on the emulator.

All tensors of a call share one floating-point dtype and one device; any strides will do. A wrong type or dtype raises
TypeError, everything else that does not fit raises ValueError, before anything is written.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scratchcuda import _checks, tensor_ops
from scratchcuda._backend import serving

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh", "softmax")


def dense(x: Tensor, w: Tensor, b: Tensor | None = None, activation: str = "none") -> Tensor:
    """A dense layer, ``f(x w + b)``.

    Args:
        x: input (..., n_in).
        w: weights (n_in, n_out); ``linear.weight.T`` goes in as it is.
        b: bias (n_out,), or none.
        activation: one of :data:`ACTIVATIONS`; softmax runs over the last dimension.

    Returns:
        (..., n_out).
    """
    _checks.floating("x", x)
    _weights("x", x, w)
    _checks.features("x", x, w.shape[0])
    if b is not None:
        _checks.alike("b", b, "x", x)
        _checks.shape("b", b, (w.shape[1],))
    _checks.one_of("activation", activation, ACTIVATIONS)
    return serving("dense", x, w, *([] if b is None else [b]))(x, w, b, activation)


def dense_backward_input(delta: Tensor, w: Tensor, a: Tensor | None = None, activation: str = "none") -> Tensor:
    """The gradient of ``z = x w + b`` with respect to x, ``delta w^T``; or, where ``x = f(y)``, with respect to y.

    Args:
        delta: gradient with respect to z (..., n_out).
        w: the weights of the forward (n_in, n_out).
        a: x, if it is the output of an activation f (..., n_in).
        activation: its name, an elementwise one of :data:`ACTIVATIONS`; the result is multiplied by its derivative.

    Returns:
        (..., n_in).
    """
    _checks.floating("delta", delta)
    _weights("delta", delta, w)
    _checks.features("delta", delta, w.shape[1])
    _checks.one_of("activation", activation, ACTIVATIONS[:-1])
    if activation == "none":
        return serving("dense_backward_input", delta, w)(delta, w)
    if a is None:
        raise ValueError(f"a is None, expected the outputs of {activation}")
    _checks.alike("a", a, "delta", delta)
    _checks.shape("a", a, (*delta.shape[:-1], w.shape[0]))
    return serving("dense_backward_input", delta, w, a)(delta, w, a, activation)


def dense_backward_weights(delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``z = x w + b`` with respect to w and b.

    Args:
        delta: gradient with respect to z (..., n_out).
        x: the input of the forward (..., n_in).

    Returns:
        ``x^T delta`` (n_in, n_out), and the sum of delta's rows (n_out,).
    """
    _rows(delta, x)
    return serving("dense_backward_weights", delta, x)(delta, x)


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
    _checks.apart({"w": [w], "b": [b]}, {"delta": [delta], "x": [x]})
    lr, weight_decay = _checks.non_negative("lr", lr), _checks.non_negative("weight_decay", weight_decay)
    with torch.no_grad():
        serving("dense_update_", delta, x, w, b)(delta, x, w, b, lr, weight_decay)
    bump_versions(w, b)


def relu(z: Tensor) -> Tensor:
    """``max(z, 0)``, any shape."""
    _checks.floating("z", z)
    return serving("relu", z)(z)


def sigmoid(z: Tensor) -> Tensor:
    """``1 / (1 + exp(-z))``, any shape."""
    _checks.floating("z", z)
    return serving("sigmoid", z)(z)


def tanh(z: Tensor) -> Tensor:
    """``tanh(z)``, any shape."""
    _checks.floating("z", z)
    return serving("tanh", z)(z)


def softmax(z: Tensor, dim: int = -1) -> Tensor:
    """``exp(z_i) / sum_j exp(z_j)`` over the dimension ``dim``, any shape."""
    _checks.floating("z", z)
    dim = _checks.dim("dim", dim, "z", z)
    return serving("softmax", z)(z, dim)


def relu_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta`` where ``a > 0``, else 0, with ``a = relu(z)``; both of one shape."""
    _outputs(delta, a)
    return serving("relu_backward", delta, a)(delta, a)


def sigmoid_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta a (1 - a)``, with ``a = sigmoid(z)``; both of one shape."""
    _outputs(delta, a)
    return serving("sigmoid_backward", delta, a)(delta, a)


def tanh_backward(delta: Tensor, a: Tensor) -> Tensor:
    """``delta (1 - a^2)``, with ``a = tanh(z)``; both of one shape."""
    _outputs(delta, a)
    return serving("tanh_backward", delta, a)(delta, a)


def softmax_backward(delta: Tensor, a: Tensor, dim: int = -1) -> Tensor:
    """``a (delta - sum(delta a))``, sums over the dimension ``dim``; with ``a = softmax(z, dim)`` of the same shape."""
    _outputs(delta, a)
    dim = _checks.dim("dim", dim, "delta", delta)
    return serving("softmax_backward", delta, a)(delta, a, dim)


def mse(y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over all elements, and its gradient, as torch.nn.MSELoss.

    Args:
        y_pred: predictions, any shape.
        y_true: targets of the same shape.

    Returns:
        the loss (), and its gradient with respect to y_pred.
    """
    _predictions(y_pred, y_true)
    return serving("mse", y_pred, y_true)(y_pred, y_true)


def cross_entropy(scores: Tensor, y_true: Tensor, ignore_index: int | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(scores), mean over the rows, and its gradient, as torch.nn.CrossEntropyLoss.

    Args:
        scores: unnormalised log-probabilities (m, classes).
        y_true: probabilities (m, classes), or class indices (m,) of an integer dtype. Where the kernels serve a GPU,
            the range is not checked, which would wait for it: an index that is no class makes loss and gradient NaN.
        ignore_index: a class index whose rows have no part in it; the loss is the mean over the others.

    Returns:
        the loss (), and its gradient with respect to scores (m, classes).
    """
    y_true = _targets(scores, y_true)
    if ignore_index is not None:
        ignore_index = _checks.integer("ignore_index", ignore_index, "an integer or None")
        if y_true.dim() != 1:
            raise ValueError(f"ignore_index is {ignore_index}, expected None with probabilities")
    op = serving("cross_entropy", scores, y_true)
    if y_true.dim() == 1 and (op is tensor_ops.cross_entropy or not scores.is_cuda):
        used = y_true if ignore_index is None else y_true[y_true != ignore_index]
        _checks.class_indices("y_true", used, scores.shape[1])
    return op(scores, y_true, ignore_index)


def mse_step_(y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    """:func:`mse` in a training step: writes the loss to ``losses[step]``, if it has such a place; increments step.

    Nothing waits for a GPU, so that a CUDA Graph can replay it.

    Args:
        y_pred, y_true: as mse takes them.
        losses: of all steps (steps,), of their dtype.
        step: the number of this step (), int64, at least 0.

    Returns:
        the gradient with respect to y_pred.
    """
    _predictions(y_pred, y_true)
    return _step("mse_step_", "y_pred", y_pred, y_true, losses, step)


def cross_entropy_step_(scores: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    """:func:`cross_entropy` in a training step, as :func:`mse_step_`; the range of class indices is not checked.

    Returns:
        the gradient with respect to scores (m, classes).
    """
    return _step("cross_entropy_step_", "scores", scores, _targets(scores, y_true), losses, step)


def take_batch_(
    x: Tensor, y: Tensor, order: Tensor, step: Tensor, batch_size: int, x_batch: Tensor, y_batch: Tensor
) -> None:
    """The batch of a training step, ``order[step * batch_size : ][:m]`` of x and y, into x_batch and y_batch.

    Nothing waits for a GPU, so that a CUDA Graph can replay it.

    Args:
        x: inputs (samples, n_in).
        y: targets (samples, n_out), or class indices (samples,) of int64.
        order: numbers of samples (samples,), int64. Where the kernels serve, rows of a step past its end, or of numbers
            that are no sample's, are left as they are.
        step: the number of the step (), int64, at least 0.
        batch_size: samples of the steps before.
        x_batch, y_batch: for m samples, (m, n_in) and (m, n_out) or (m,), contiguous.
    """
    for name, samples, batch in (("x", x, x_batch), ("y", y, y_batch)):
        _checks.tensor(name, samples)
        if not (name == "y" and samples.dtype == torch.int64 and samples.dim() == 1):  # class indices
            _checks.floating(name, samples)
        _checks.on_device(name, samples, "x", x.device)
        _checks.alike(f"{name}_batch", batch, name, samples)
        _checks.shape(f"{name}_batch", batch, (*batch.shape[:1], *samples.shape[1:]))
        if samples.dim() not in (1, 2):
            raise ValueError(f"{name} has shape {tuple(samples.shape)}, expected one or two dimensions")
        if not batch.is_contiguous():
            raise ValueError(f"{name}_batch has strides {batch.stride()}, expected contiguous memory")
    _checks.same_length("y_batch", y_batch, "x_batch", x_batch)
    _index("order", order, x, 1)
    _index("step", step, x, 0)
    batch_size = _checks.positive_int("batch_size", batch_size)
    read = {"x": [x], "y": [y], "order": [order], "step": [step]}
    _checks.apart({"x_batch": [x_batch], "y_batch": [y_batch]}, read)
    with torch.no_grad():
        serving("take_batch_", x, y, x_batch, y_batch)(x, y, order, step, batch_size, x_batch, y_batch)
    bump_versions(x_batch, y_batch)


def sgd_update_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    weight_decay: float = 0.0,
    *,
    momentum_buffers: Sequence[Tensor] = (),
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    is_first_step: bool = False,
) -> None:
    """One step of stochastic gradient descent in place, as torch.optim.SGD.

    ``g <- -g`` to maximize; ``g <- g + weight_decay p``; with momentum ``m <- momentum m + (1 - dampening) g``, then
    ``g <- m``, or ``g + momentum m`` with nesterov; ``p <- p - lr g``.

    Args:
        params: tensors p to update, of any sizes and floating-point dtypes, on one device, each in memory of its own.
        grads: one gradient g for each, of its shape and dtype.
        lr: learning rate, finite, at least 0.
        weight_decay: factor of the L2 penalty, finite, at least 0.
        momentum_buffers: with momentum, a tensor m for each parameter, of its shape and dtype.
        momentum: finite, at least 0; 0 is none.
        dampening: of the gradient that joins the momentum, finite.
        nesterov: Nesterov's momentum, which needs momentum and no dampening.
        maximize: ascend instead.
        is_first_step: the buffers hold nothing yet; they become the gradients.
    """
    lr, weight_decay = _checks.non_negative("lr", lr), _checks.non_negative("weight_decay", weight_decay)
    momentum, dampening = _checks.non_negative("momentum", momentum), _checks.finite("dampening", dampening)
    for name, value in (("nesterov", nesterov), ("maximize", maximize), ("is_first_step", is_first_step)):
        _checks.flag(name, value)
    params, grads = _checks.tensors("params", params), _checks.tensors("grads", grads)
    momentum_buffers = _checks.tensors("momentum_buffers", momentum_buffers) if momentum else []
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(f"nesterov needs momentum and no dampening, got momentum {momentum}, dampening {dampening}")
    for i, p in enumerate(params):
        _checks.floating(f"params[{i}]", p)
        _checks.on_device(f"params[{i}]", p, "params[0]", params[0].device)
        _checks.writable(f"params[{i}]", p)
    beside = {"grads": grads} | ({"momentum_buffers": momentum_buffers} if momentum else {})
    for name, tensors in beside.items():
        if len(tensors) != len(params):
            raise ValueError(f"{name} has {len(tensors)} tensors, expected {len(params)} as params")
        for i, (p, tensor) in enumerate(zip(params, tensors, strict=True)):
            _checks.alike(f"{name}[{i}]", tensor, f"params[{i}]", p)
            _checks.shape(f"{name}[{i}]", tensor, tuple(p.shape))
    for i, buffer in enumerate(momentum_buffers):
        _checks.writable(f"momentum_buffers[{i}]", buffer)
    _checks.apart({"params": params, "momentum_buffers": momentum_buffers}, {"grads": grads})
    if not params:
        return
    options = lr, weight_decay, momentum, dampening, nesterov, maximize, is_first_step
    with torch.no_grad():
        serving("sgd_update_", *params, *grads, *momentum_buffers)(params, grads, momentum_buffers, *options)
    bump_versions(*params, *momentum_buffers)


def bump_versions(*tensors: Tensor) -> None:
    """Bump versions: kernels write behind autograd's back, and a graph that saved these tensors must raise, not lie."""
    if not torch.compiler.is_compiling():  # which keeps account of its own
        torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])


def _step(name: str, first: str, y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    _checks.alike("losses", losses, first, y_pred)
    if losses.dim() != 1:
        raise ValueError(f"losses has shape {tuple(losses.shape)}, expected (steps,)")
    _checks.writable("losses", losses)
    _index("step", step, y_pred, 0)
    with torch.no_grad():
        gradient: Tensor = serving(name, y_pred, y_true)(y_pred, y_true, losses, step)
    bump_versions(losses, step)
    return gradient


def _index(name: str, numbers: Tensor, beside: Tensor, dims: int) -> None:
    _checks.tensor(name, numbers)
    _checks.on_device(name, numbers, "the data", beside.device)
    if numbers.dtype != torch.int64:
        raise TypeError(f"{name} has dtype {numbers.dtype}, expected torch.int64")
    if numbers.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(numbers.shape)}, expected {'(samples,)' if dims else '()'}")


def _predictions(y_pred: Tensor, y_true: Tensor) -> None:
    _checks.floating("y_pred", y_pred)
    _checks.alike("y_true", y_true, "y_pred", y_pred)
    _checks.shape("y_true", y_true, tuple(y_pred.shape))


def _targets(scores: Tensor, y_true: Tensor) -> Tensor:
    _checks.floating("scores", scores)
    _checks.tensor("y_true", y_true)
    if scores.dim() != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected (m, classes)")
    if y_true.dim() == 1:
        _checks.on_device("y_true", y_true, "scores", scores.device)
        _checks.same_length("y_true", y_true, "scores", scores)
        _checks.class_indices("y_true", y_true, None)
        return y_true.long()
    _checks.alike("y_true", y_true, "scores", scores)
    _checks.shape("y_true", y_true, tuple(scores.shape))
    return y_true


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
