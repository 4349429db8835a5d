"""torch.nn.functional's functions of the same names, on the kernels where they serve.

The kernels take CUDA tensors, and CPU tensors on the emulator: dense ones of one of their dtypes, with or without
gradients, also within torch.compile, activation checkpointing and CUDA Graphs. Everything else goes to torch's own
function, so results, gradients and errors are torch's: CPU tensors, tensor subclasses, the transforms of torch.func,
exports, and the arguments that the kernels do not know, which each docstring names.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from scratchcuda import ops
from scratchcuda._fallback import fallback
from scratchcuda.ops import _backend, _entries
from scratchcuda.ops._entries import ENTRIES, Chosen, Elementwise, elementwise
from scratchcuda.ops._registry import twins

_mse_loss_of_one_shape = torch.ops.aten.mse_loss.default  # torch.nn.functional's broadcasts first, which takes 3 µs


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    activation_parameters: Sequence[float] = (),
) -> Tensor:
    """``f(input weight^T + bias)``, as torch.nn.functional.linear, with an activation f besides.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or none.
        activation: one of :data:`scratchcuda.ops.ACTIVATIONS`; softmax runs over the last dimension.
        activation_parameters: those of its function, in order; their defaults if there are none.

    Returns:
        (..., out_features).
    """
    chosen = _entries.chosen(activation, activation_parameters)
    if _within_reach(input) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor)):
        device = input.device.type
        if torch.is_autocast_enabled(device):
            if activation == "softmax":  # which has a dtype of its own there
                return softmax(linear(input, weight, bias), -1)
            dtype = torch.get_autocast_dtype(device)
            input, weight = _cast(input, dtype), _cast(weight, dtype)
            bias = bias if bias is None else _cast(bias, dtype)
        fits = weight.dim() == 2 and input.dim() > 0 and input.shape[-1] == weight.shape[1]
        fits = fits and (bias is None or bias.shape == weight.shape[:1])
        if fits and (kernels := _kernels("dense", input, weight, bias)):
            return _linear(kernels, input, weight, bias, chosen)
    z = functional.linear(input, weight, bias)
    # Not in place, as in the twin: autograd keeps account of that, which takes longer than another buffer.
    return z if activation == "none" else chosen.entry.forward(z, *chosen.parameters)


def _elementwise(entry: Elementwise) -> Callable[..., Tensor]:
    """Torch's function of this name, on the kernels but in place, or with arguments that these do not take."""
    theirs, forward = getattr(functional, entry.name), entry.forward
    names = (*entry.parameters, *(["inplace"] if "inplace" in entry.others else []))

    def function(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if _within_reach(input):
            given = dict(zip(names, args, strict=False)) | kwargs
            is_usual = len(given) == len(args) + len(kwargs) and all(name in names for name in given)
            if is_usual and not given.get("inplace", False):
                values = [given.get(name, parameter.default) for name, parameter in entry.parameters.items()]
                if entry.takes(values) and (kernels := _kernels(entry.name, input)):
                    return _activation(kernels, input, entry.name, *values)
        if args or kwargs:
            result: Tensor = theirs(input, *args, **kwargs)
            return result
        return forward(input)

    function.__name__ = function.__qualname__ = entry.name
    function.__code__ = function.__code__.replace(co_name=entry.name)  # for tracebacks
    function.__doc__ = re.sub(r"\bz\b", "input", str(getattr(ops, entry.name).__doc__))
    if names:
        refused = [f"with a {name} that the ops refuse" for name in entry.parameters]
        function.__doc__ += f" It is torch's own {' and '.join(['in place', *refused])}."
    if isinstance(theirs, FunctionType):  # others tell none
        _, *others = inspect.signature(theirs).parameters.values()
        first = inspect.Parameter("input", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor)
        function.__signature__ = inspect.Signature([first, *others], return_annotation=Tensor)  # type: ignore[attr-defined]
    return function


globals().update({entry.name: _elementwise(entry) for entry in elementwise()})


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """``exp(input_i) / sum_j exp(input_j)`` over the dimension ``dim``, computed in ``dtype`` if given.

    Without ``dim``, which torch guesses then, and of a scalar, it is torch's own.
    """
    plain = dtype is None or isinstance(dtype, torch.dtype)
    if plain and type(dim) is int and _within_reach(input) and -input.dim() <= dim < input.dim():
        z = input if dtype is None else input.to(dtype)
        if input.is_cuda and torch.is_autocast_enabled("cuda") and dtype is None:
            z = _cast(input, torch.float32)
        if kernels := _kernels("softmax", z):
            return _activation(kernels, z, "softmax", dim)
    return functional.softmax(input, dim, _stacklevel + 1, dtype)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error, as torch.nn.functional.mse_loss.

    It is torch's own with weights, another reduction than "mean", a target of another shape, or one that asks for a
    gradient.

    Args:
        input: predictions, any shape.
        target: of the same shape.

    Returns:
        ().
    """
    plain = reduction == "mean" and size_average is None and reduce is None and weight is None
    if plain and type(input) is type(target) is Tensor and input.shape == target.shape:
        if _within_reach(input) and (loss := _loss("mse", input, target)) is not None:
            return loss
        return _mse_loss_of_one_shape(input, target)
    return functional.mse_loss(input, target, size_average, reduce, reduction, weight)  # type: ignore[call-arg]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of softmax(input), as torch.nn.functional.cross_entropy.

    It is torch's own with weights, label smoothing, another reduction than "mean", other dimensions than these, or
    probabilities that ask for a gradient.

    Args:
        input: scores (m, classes).
        target: class indices (m,) of int64, or probabilities (m, classes). Where the kernels serve, an index that is
            no class makes loss and gradient NaN; to refuse it is to wait for the GPU.
        ignore_index: a class index whose rows have no part in the mean.

    Returns:
        ().
    """
    plain = reduction == "mean" and size_average is None and reduce is None and weight is None and label_smoothing == 0
    plain = plain and type(ignore_index) is int and isinstance(target, Tensor)
    if plain and _within_reach(input) and input.dim() == 2 and input.shape[1]:
        by_class = target.dtype == torch.int64 and target.shape == input.shape[:1] and target.device == input.device
        if by_class or (target.shape == input.shape and ignore_index < 0):
            loss = _loss("cross_entropy", input, target, *([ignore_index] if by_class else []))
            if loss is not None:
                return loss
    return functional.cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


def _within_reach(tensor: Tensor) -> bool:
    """Asked first, of proxies too, which have no answer to the rest."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and _backend.reaches(tensor) and _backend.plain(tensor)


def _kernels(name: str, first: Tensor, *others: Tensor | None) -> str:
    """The namespace of torch.ops whose kernels take these tensors; none if these are not of one dtype and device."""
    tensors = [first, *(tensor for tensor in others if tensor is not None)]
    alike = all(tensor.dtype == first.dtype and tensor.device == first.device for tensor in tensors)
    return _backend.kernels_for(name, *tensors) if alike and first.dtype in _backend.DTYPES else ""


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As torch.autocast casts an argument."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def _loss(name: str, input: Tensor, target: Tensor, *ignore_index: int) -> Tensor | None:
    """A loss on the kernels, by class indices if there is one to ignore; None if they do not take it.

    By torch.autocast a loss is computed, and stays, in float32. Where it is not on, 16 bits are computed so all the
    same: the gradient is then rounded after that of the loss itself is applied, which may scale it from underflow.
    """
    autocast = torch.is_autocast_enabled(input.device.type)
    if target.requires_grad or not (autocast or ignore_index or target.dtype == input.dtype):
        return None
    scores, targets = _cast(input, torch.float32), _cast(target, torch.float32)
    if not (kernels := _kernels(name, *((scores,) if ignore_index else (scores, targets)))):
        return None
    loss = _loss_by(kernels, name, scores, targets, *ignore_index)
    return loss if autocast else loss.to(input.dtype)


# Each autograd Function is entered only where a gradient is asked for, and saves and computes nothing that no gradient
# needs. It keeps the namespace of its kernels, torch.ops.<kernels>: a backward runs on another thread, and maybe under
# another backend. Where a backward is itself recorded, for second derivatives, the twins serve, which torch can
# differentiate.


def _linear(kernels: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Chosen) -> Tensor:
    # x (..., n_in), weight (n_out, n_in), bias (n_out,) -> (..., n_out)
    if not _records(x, weight, bias):
        return _ops(kernels).dense(x, weight.T, bias, *activation)
    result: Tensor = _Linear.apply(x, weight, bias, activation, kernels)
    return result


def _activation(kernels: str, z: Tensor, name: str, *options: float) -> Tensor:
    if not _records(z):
        return getattr(_ops(kernels), name)(z, *options)
    result: Tensor = _Activation.apply(z, name, options, kernels)
    return result


def _loss_by(kernels: str, name: str, y_pred: Tensor, y_true: Tensor, *options: int) -> Tensor:
    if not _records(y_pred):
        return getattr(_ops(kernels), name)(y_pred, y_true, *options)[0]
    result: Tensor = _Loss.apply(y_pred, y_true, name, options, kernels)
    return result


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Chosen, kernels: str) -> Tensor:
        name, parameters = activation
        if activation.entry.of_input:
            value = _ops(kernels).dense(x, weight.T, bias, "none")
            a: Tensor = getattr(_ops(kernels), name)(value, *parameters)
        else:
            value = a = _ops(kernels).dense(x, weight.T, bias, name, parameters)
        for_x, for_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None, value if name != "none" else None)
        ctx.activation, ctx.kernels = activation, kernels
        ctx.set_materialize_grads(False)
        return a

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None) -> tuple[Tensor | None, ...]:
        if delta is None:
            return None, None, None, None, None
        x, weight, value = ctx.saved_tensors
        by = _ops_of_backward(ctx.kernels)
        if value is not None:
            name, parameters = ctx.activation
            delta = getattr(by, f"{name}_backward")(delta, value, *parameters)
        dx = dw = db = None
        if weight is not None:
            dx = by.dense_backward_input(delta, weight.T)
        if x is not None:
            dw, db = by.dense_backward_weights(delta, x)
            dw = dw.T
        elif ctx.needs_input_grad[2]:
            db = delta.sum_to_size(delta.shape[-1:])
        return dx, dw, db if ctx.needs_input_grad[2] else None, None, None


class _Activation(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, name: str, options: tuple[float, ...], kernels: str) -> Tensor:
        a: Tensor = getattr(_ops(kernels), name)(z, *options)
        ctx.save_for_backward(z if ENTRIES[name].of_input else a)
        ctx.op, ctx.options, ctx.kernels = name, options, kernels
        ctx.set_materialize_grads(False)
        return a

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None) -> tuple[Tensor | None, ...]:
        if delta is None:
            return None, None, None, None
        (value,) = ctx.saved_tensors
        backward = getattr(_ops_of_backward(ctx.kernels), f"{ctx.op}_backward")
        return backward(delta, value, *ctx.options), None, None, None


class _Loss(Function):
    @staticmethod
    def forward(ctx: Any, y_pred: Tensor, y_true: Tensor, name: str, options: tuple[int, ...], kernels: str) -> Tensor:
        value, gradient = getattr(_ops(kernels), name)(y_pred, y_true, *options)
        ctx.save_for_backward(y_pred, y_true, gradient)
        ctx.op, ctx.options, ctx.kernels = name, options, kernels
        ctx.set_materialize_grads(False)
        return value

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None) -> tuple[Tensor | None, ...]:
        if delta is None:
            return None, None, None, None, None
        y_pred, y_true, gradient = ctx.saved_tensors
        by = _ops_of_backward(ctx.kernels)
        if by is twins:  # as a function of the predictions
            gradient = getattr(by, ctx.op)(y_pred, y_true, *ctx.options)[1]
        return gradient * delta, None, None, None, None


def _records(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _ops(kernels: str) -> Any:
    return getattr(torch.ops, kernels)


def _ops_of_backward(kernels: str) -> Any:
    """The kernels, or, where the backward is recorded, their twins."""
    return twins if torch.is_grad_enabled() else _ops(kernels)


if TYPE_CHECKING:
    from torch.nn.functional import *  # type: ignore[assignment]
else:
    __getattr__, __dir__, __all__ = fallback(globals(), functional)
