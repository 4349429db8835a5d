"""The dense layer: f(x w + b), the gradients of z = x w + b, and the update that stores none."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._entries import ENTRIES, chosen
from scratchcuda.ops._registry import operation, twins
from scratchcuda.ops.sgd import sgd_update_twin

__all__ = ["dense", "dense_backward_input", "dense_backward_weights", "dense_update_", "dense_with_preactivation"]


@operation(
    "dense(Tensor x, Tensor w, Tensor? b, str activation, float[] activation_parameters=[]) -> Tensor",
    products=lambda x, w, *rest: 2 * math.prod(x) * w[1],
    others=lambda of, out: out.numel() * ((of["b"] is not None) + ENTRIES[of["activation"]].flops[0]),
)
def dense_twin(
    x: Tensor, w: Tensor, b: Tensor | None, activation: str, activation_parameters: Sequence[float] = ()
) -> Tensor:
    # x (..., n_in), w (n_in, n_out), b (n_out,) -> (..., n_out)
    # In place, on the fresh output of the product: one buffer less.
    return ENTRIES[activation].in_place(functional.linear(x, w.mT, b), *activation_parameters)


def dense(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    activation: str = "none",
    activation_parameters: Sequence[float] = (),
) -> Tensor:
    """A dense layer, ``f(x w + b)``.

    Args:
        x: input (..., n_in).
        w: weights (n_in, n_out); ``linear.weight.T`` goes in as it is.
        b: bias (n_out,), or none.
        activation: one of :data:`ACTIVATIONS`; softmax runs over the last dimension.
        activation_parameters: those of its function, in order; their defaults if there are none.

    Returns:
        (..., n_out).
    """
    _check_layer(x, w, b)
    name, values = chosen(activation, activation_parameters)
    return _backend.serving("dense", x, w, *([] if b is None else [b]))(x, w, b, name, values)


@operation(
    "dense_with_preactivation(Tensor x, Tensor w, Tensor? b, str activation, float[] activation_parameters=[]) "
    "-> (Tensor, Tensor)",
    products=lambda x, w, *rest: 2 * math.prod(x) * w[1],
    others=lambda of, out: out[0].numel() * ((of["b"] is not None) + ENTRIES[of["activation"]].flops[0]),
)
def dense_with_preactivation_twin(
    x: Tensor, w: Tensor, b: Tensor | None, activation: str, activation_parameters: Sequence[float] = ()
) -> tuple[Tensor, Tensor]:
    # x (..., n_in), w (n_in, n_out), b (n_out,) -> a (..., n_out), z (..., n_out)
    z = functional.linear(x, w.mT, b)
    return ENTRIES[activation].forward(z, *activation_parameters), z


def dense_with_preactivation(
    x: Tensor, w: Tensor, b: Tensor | None, activation: str, activation_parameters: Sequence[float] = ()
) -> tuple[Tensor, Tensor]:
    """A dense layer, and what its activation is of: for a backward that is in terms of the input, as silu's.

    Args:
        x, w, b, activation_parameters: as :func:`dense` takes them.
        activation: one of those of :data:`ACTIVATIONS` whose derivative is in terms of the input.

    Returns:
        ``f(z)`` and ``z = x w + b``, both (..., n_out).
    """
    _check_layer(x, w, b)
    _checks.one_of("activation", activation, [name for name, entry in ENTRIES.items() if entry.of_input])
    name, values = chosen(activation, activation_parameters)
    serving = _backend.serving("dense_with_preactivation", x, w, *([] if b is None else [b]))
    result: tuple[Tensor, Tensor] = serving(x, w, b, name, values)
    return result


@operation(
    'dense_backward_input(Tensor delta, Tensor w, Tensor? a=None, str activation="none", '
    "float[] activation_parameters=[]) -> Tensor",
    products=lambda delta, w, *rest: 2 * math.prod(delta) * w[0],
    others=lambda of, out: out.numel() * ENTRIES[of["activation"]].flops[1],
)
def dense_backward_input_twin(
    delta: Tensor,
    w: Tensor,
    a: Tensor | None = None,
    activation: str = "none",
    activation_parameters: Sequence[float] = (),
) -> Tensor:
    # delta (..., n_out), w (n_in, n_out), a (..., n_in) -> dx (..., n_in)
    dx = delta @ w.mT
    if a is None or activation == "none":
        return dx
    result: Tensor = getattr(twins, f"{activation}_backward")(dx, a, *activation_parameters)
    return result


def dense_backward_input(
    delta: Tensor,
    w: Tensor,
    a: Tensor | None = None,
    activation: str = "none",
    activation_parameters: Sequence[float] = (),
) -> Tensor:
    """The gradient of ``z = x w + b`` with respect to x, ``delta w^T``; or, where ``x = f(y)``, with respect to y.

    Args:
        delta: gradient with respect to z (..., n_out).
        w: the weights of the forward (n_in, n_out).
        a: x, if it is the output of an activation f (..., n_in); or y, if the derivative is in terms of that.
        activation: its name, an elementwise one of :data:`ACTIVATIONS`; the result is multiplied by its derivative.
        activation_parameters: as :func:`dense` takes them.

    Returns:
        (..., n_in).
    """
    _checks.floating("delta", delta)
    _check_weights("delta", delta, w)
    _checks.features("delta", delta, w.shape[1])
    name, values = chosen(activation, activation_parameters, but="softmax")
    if activation == "none":
        return _backend.serving("dense_backward_input", delta, w)(delta, w)
    if a is None:
        what = "inputs" if ENTRIES[activation].of_input else "outputs"
        raise ValueError(f"a is None, expected the {what} of {activation}")
    _checks.alike("a", a, "delta", delta)
    _checks.shape("a", a, (*delta.shape[:-1], w.shape[0]))
    return _backend.serving("dense_backward_input", delta, w, a)(delta, w, a, name, values)


@operation(
    "dense_backward_weights(Tensor delta, Tensor x) -> (Tensor, Tensor)",
    products=lambda delta, x, *rest: 2 * math.prod(delta) * x[-1],
    others=lambda of, out: of["delta"].numel(),
)
def dense_backward_weights_twin(delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    # delta (..., n_out), x (..., n_in) -> dw (n_in, n_out), in memory as torch.nn's weights (n_out, n_in), db (n_out,)
    rows, inputs = _rows(delta), _rows(x)
    return (rows.mT @ inputs).mT, rows.sum(0)


def dense_backward_weights(delta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``z = x w + b`` with respect to w and b.

    Args:
        delta: gradient with respect to z (..., n_out).
        x: the input of the forward (..., n_in).

    Returns:
        ``x^T delta`` (n_in, n_out), and the sum of delta's rows (n_out,).
    """
    _check_rows(delta, x)
    return _backend.serving("dense_backward_weights", delta, x)(delta, x)


@operation(
    "dense_update_(Tensor delta, Tensor x, Tensor(a!) w, Tensor(b!)? b, float lr, float weight_decay) -> ()",
    products=lambda delta, x, *rest: 2 * math.prod(delta) * x[-1],
    others=lambda of, out: (
        (4 if of["weight_decay"] else 2) * of["w"].numel()
        + (0 if of["b"] is None else of["delta"].numel() + 2 * of["b"].numel())
    ),
)
@torch.no_grad()
def dense_update_twin(delta: Tensor, x: Tensor, w: Tensor, b: Tensor | None, lr: float, weight_decay: float) -> None:
    # delta (..., n_out), x (..., n_in), w (n_in, n_out), b (n_out,)
    rows, inputs = _rows(delta), _rows(x)
    # In the order in which the weights lie: to add a gradient in another takes many times as long.
    dw = inputs.mT @ rows if w.is_contiguous() else (rows.mT @ inputs).mT
    sgd_update_twin([w], [dw], [], lr, weight_decay)
    if b is not None:
        sgd_update_twin([b], [rows.sum(0)], [], lr)


def dense_update_(delta: Tensor, x: Tensor, w: Tensor, b: Tensor | None, lr: float, weight_decay: float = 0.0) -> None:
    """One step of gradient descent on w and b in place, with the gradients of :func:`dense_backward_weights`.

    ``w <- w - lr (x^T delta + weight_decay w)``, and ``b <- b - lr sum(delta)``, which does not decay.

    Args:
        delta: gradient with respect to ``z = x w + b`` (..., n_out).
        x: the input of the forward (..., n_in).
        w: weights (n_in, n_out).
        b: bias (n_out,), or none.
        lr: learning rate, finite, at least 0.
        weight_decay: factor of the L2 penalty on w, finite, at least 0.
    """
    _check_rows(delta, x)
    written = {"w": w} if b is None else {"w": w, "b": b}
    shapes = {"w": (x.shape[-1], delta.shape[-1]), "b": (delta.shape[-1],)}
    for name, tensor in written.items():
        _checks.alike(name, tensor, "delta", delta)
        _checks.shape(name, tensor, shapes[name])
        _checks.writable(name, tensor)
    _checks.apart({name: [tensor] for name, tensor in written.items()}, {"delta": [delta], "x": [x]})
    lr, weight_decay = _checks.non_negative("lr", lr), _checks.non_negative("weight_decay", weight_decay)
    with torch.no_grad():
        _backend.serving("dense_update_", delta, x, *written.values())(delta, x, w, b, lr, weight_decay)
    _backend.bump_versions(*written.values())


def _check_layer(x: Tensor, w: Tensor, b: Tensor | None) -> None:
    _checks.floating("x", x)
    _check_weights("x", x, w)
    _checks.features("x", x, w.shape[0])
    if b is not None:
        _checks.alike("b", b, "x", x)
        _checks.shape("b", b, (w.shape[1],))


def _check_rows(delta: Tensor, x: Tensor) -> None:
    _checks.floating("delta", delta)
    _checks.alike("x", x, "delta", delta)
    if x.dim() == 0 or delta.shape[:-1] != x.shape[:-1] or delta.dim() != x.dim():
        raise ValueError(
            f"delta has shape {tuple(delta.shape)}, expected {(*x.shape[:-1], 'n_out')} as x {tuple(x.shape)}"
        )


def _check_weights(name: str, other: Tensor, w: Tensor) -> None:
    _checks.alike("w", w, name, other)
    if w.dim() != 2:
        raise ValueError(f"w has shape {tuple(w.shape)}, expected (n_in, n_out)")


def _rows(x: Tensor) -> Tensor:
    # (..., n) -> (m, n); -1 for m would be ambiguous beside 0 features
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
