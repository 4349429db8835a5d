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
from scratchcuda.ops import _backend, _checks, _entries
from scratchcuda.ops._entries import ENTRIES, Chosen, Elementwise, elementwise
from scratchcuda.ops._losses import LOSSES, NUMBERS, REDUCTIONS, Loss
from scratchcuda.ops._registry import twins


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


def _name(function: Any, name: str) -> None:
    function.__name__ = function.__qualname__ = name
    function.__code__ = function.__code__.replace(co_name=name)  # for tracebacks


def _elementwise(entry: Elementwise) -> Callable[..., Tensor]:
    """Torch's function of this name, on the kernels but in place, or with arguments that these do not take."""
    theirs, forward = getattr(functional, entry.name), entry.forward
    by_position = (*entry.parameters, *(["inplace"] if "inplace" in entry.others else []))
    names, usual = {*by_position, *entry.variant}, dict(entry.variant)

    def function(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if _within_reach(input):
            given = dict(zip(by_position, args, strict=False)) | kwargs
            is_usual = len(given) == len(args) + len(kwargs) and all(name in names for name in given)
            if is_usual and not given.get("inplace", False):
                values = [given.get(name, parameter.default) for name, parameter in entry.parameters.items()]
                variant = entry.among(usual | given) if usual else entry
                if variant and entry.takes(values) and (kernels := _kernels(variant.name, input)):
                    return _activation(kernels, input, variant.name, *values)
        if args or kwargs:
            result: Tensor = theirs(input, *args, **kwargs)
            return result
        return forward(input)

    _name(function, entry.name)
    function.__doc__ = re.sub(r"\bz\b", "input", str(getattr(ops, entry.name).__doc__))
    if by_position:
        refused = [f"with a {name} that the ops refuse" for name in entry.parameters]
        function.__doc__ += f" It is torch's own {' and '.join(['in place', *refused])}."
    if isinstance(theirs, FunctionType):  # others tell none
        _, *others = inspect.signature(theirs).parameters.values()
        first = inspect.Parameter("input", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor)
        function.__signature__ = inspect.Signature([first, *others], return_annotation=Tensor)  # type: ignore[attr-defined]
    return function


globals().update({entry.name: _elementwise(entry) for entry in elementwise() if entry.is_first})


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


def _elementwise_loss(entry: Loss) -> Callable[..., Tensor]:
    """Torch's function of this name, on the kernels where these take its arguments."""
    theirs, by_torch, takes = getattr(functional, entry.function), entry.torchs, entry.takes
    by_position, defaults = tuple(inspect.signature(theirs).parameters)[2:], entry.defaults_by_name
    usual, weights, parameters = tuple(defaults.items()), slice(len(entry.weights)), slice(len(entry.weights), -1)
    is_plain = len(defaults) == 1  # a reduction alone

    def known(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """What the ops take after input and target; None if they do not take this."""
        given = dict(zip(by_position, args, strict=False)) | kwargs if args else kwargs
        for name in given:
            if name not in defaults and (name not in by_position or given[name] is not None):
                return None
        options = [given.get(name, default) for name, default in usual]
        fits = options[-1] in REDUCTIONS and len(given) == len(args) + len(kwargs)
        return options if fits and (is_plain or takes(options[parameters])) else None

    def function(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_of_one_shape = type(input) is type(target) is Tensor and input.shape == target.shape
        if is_of_one_shape and (options := known(args, kwargs)):
            given = [weight for weight in options[weights] if weight is not None]
            fits = _within_reach(input) and all(isinstance(w, Tensor) and _checks.spreads(w, input) for w in given)
            if fits and (loss := _loss(entry.name, input, target, *options)) is not None:
                return loss
            # Torch's function broadcasts first, which takes 3 µs.
            number = NUMBERS[options[-1]]
            if is_plain:
                return by_torch(input, target, number)
            if not given and all(options[parameters]):  # torch's op has another gradient for a beta of 0
                return by_torch(input, target, *options[weights], number, *options[parameters])
        result: Tensor = theirs(input, target, *args, **kwargs)
        return result

    _name(function, entry.function)
    about = str(getattr(ops, f"{entry.name}_value").__doc__).replace("y_pred", "input").replace("y_true", "target")
    function.__doc__ = f"""{about}

    It is torch's own for targets of another shape or dtype, or that ask for a gradient as weights may too, and for
    arguments that the ops do not know or refuse.
    """
    function.__signature__ = inspect.signature(theirs)  # type: ignore[attr-defined]
    return function


globals().update({entry.function: _elementwise_loss(entry) for entry in LOSSES.values()})


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

    It is torch's own for targets of other dtypes, weights or probabilities that ask for a gradient, and arguments that
    the ops refuse.

    Args:
        input: scores (m, classes), (n, classes, d...) or (classes,).
        target: class indices of int64, of that shape without the classes, or probabilities of that shape. Where the
            kernels serve, an index that is no class makes loss and gradient NaN; to refuse it is to wait for the GPU.
        weight: of the classes (classes,).
        ignore_index: a class index whose rows have no part in it.
        reduction: "mean", "sum" or "none".
        label_smoothing: from 0 to 1.

    Returns:
        (), or, without reduction, of the shape of input without the classes.
    """
    plain = size_average is None and reduce is None and type(ignore_index) is int and reduction in REDUCTIONS
    plain = plain and type(label_smoothing) in (float, int) and 0 <= label_smoothing <= 1
    plain = plain and isinstance(target, Tensor) and (weight is None or isinstance(weight, Tensor))
    if plain and _within_reach(input) and input.dim():
        along = min(1, input.dim() - 1)
        rows, classes = (*input.shape[:along], *input.shape[along + 1 :]), input.shape[along]
        by_class = target.dtype == torch.int64 and target.shape == rows
        takes = by_class or (target.shape == input.shape and ignore_index < 0)
        if takes and classes and (weight is None or weight.shape == (classes,)):
            options = ignore_index if by_class else None, weight, float(label_smoothing), reduction
            if (loss := _loss("cross_entropy", input, target, *options)) is not None:
                return loss
    return functional.cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


def _within_reach(tensor: Tensor) -> bool:
    """Asked first, of proxies too, which have no answer to the rest."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and _backend.reaches(tensor) and _backend.plain(tensor)


def _kernels(name: str, first: Tensor, *others: Tensor | None, indices: Tensor | None = None) -> str:
    """The namespace of torch.ops whose kernels take these tensors; none if these are not of one dtype and device.

    Indices, of int64, are of their device alone.
    """
    tensors = [first, *(tensor for tensor in others if tensor is not None)]
    alike = all(tensor.dtype == first.dtype for tensor in tensors) and first.dtype in _backend.DTYPES
    tensors += [] if indices is None else [indices]
    alike = alike and all(tensor.device == first.device for tensor in tensors)
    return _backend.kernels_for(name, *tensors) if alike else ""


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As torch.autocast casts an argument."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def _loss(name: str, input: Tensor, target: Tensor, *options: Any) -> Tensor | None:
    """A loss on the kernels, by its op of the value; None if they do not take it.

    By torch.autocast a loss is computed, and stays, in float32; but that refuses one of probabilities.
    """
    args: list[Any] = [input, target, *options]
    if torch.is_autocast_enabled(input.device.type):
        if name in LOSSES and LOSSES[name].of_probabilities:
            return None
        args = [_cast(arg, torch.float32) if isinstance(arg, Tensor) else arg for arg in args]
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if any(tensor.requires_grad for tensor in tensors[1:]):
        return None
    indices = None if target.shape == input.shape else tensors.pop(1)
    if not (kernels := _kernels(f"{name}_value", *tensors, indices=indices)):
        return None
    if not _records(tensors[0]):
        return getattr(_ops(kernels), f"{name}_value")(*args)
    result: Tensor = _Loss.apply(name, kernels, *args)
    return result


# Each autograd Function is entered only where a gradient is asked for, and saves and computes nothing that no gradient
# needs. It keeps the namespace of its kernels, torch.ops.<kernels>: a backward runs on another thread, and maybe under
# another backend. Where a backward is itself recorded, for second derivatives, the twins serve, which torch can
# differentiate.


def _linear(kernels: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Chosen) -> Tensor:
    # x (..., n_in), weight (n_out, n_in), bias (n_out,) -> (..., n_out)
    if not _records(x, weight, bias):
        return _ops(kernels).dense(x, weight.T, bias, *activation)
    result: tuple[Tensor, Tensor | None] = _Linear.apply(x, weight, bias, activation, kernels)
    return result[0]


def _activation(kernels: str, z: Tensor, name: str, *options: float) -> Tensor:
    if not _records(z):
        return getattr(_ops(kernels), name)(z, *options)
    result: Tensor = _Activation.apply(z, name, options, kernels)
    return result


class _Linear(Function):
    """Of an activation whose derivative is in terms of its input, that is the second result: by it second derivatives
    go through what is saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Chosen, kernels: str
    ) -> tuple[Tensor, Tensor | None]:
        a: Tensor
        z: Tensor | None = None
        if activation.entry.of_input:
            a, z = _ops(kernels).dense_with_preactivation(x, weight.T, bias, *activation)
        else:
            a = _ops(kernels).dense(x, weight.T, bias, *activation)
        value = None if activation.name == "none" else a if z is None else z
        for_x, for_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None, value)
        ctx.activation, ctx.kernels = activation, kernels
        ctx.set_materialize_grads(False)
        return a, z

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None, of_z: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, value = ctx.saved_tensors
        by = _ops_of_backward(ctx.kernels)
        if delta is not None and value is not None:
            name, parameters = ctx.activation
            delta = getattr(by, f"{name}_backward")(delta, value, *parameters)
        if of_z is not None:
            delta = of_z if delta is None else delta + of_z
        if delta is None:
            return None, None, None, None, None
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
    """Of the arguments of its two ops: predictions, targets, and tensors and others in any order."""

    @staticmethod
    def forward(ctx: Any, name: str, kernels: str, *args: Any) -> Tensor:
        ctx.save_for_backward(*(arg if isinstance(arg, Tensor) else None for arg in args))
        ctx.others = tuple(None if isinstance(arg, Tensor) else arg for arg in args)
        ctx.op, ctx.kernels = name, kernels
        ctx.set_materialize_grads(False)
        value: Tensor = getattr(_ops(kernels), f"{name}_value")(*args)
        return value

    @staticmethod
    def backward(ctx: Any, delta: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient = None
        if delta is not None:
            pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
            args = (other if tensor is None else tensor for tensor, other in pairs)
            gradient = getattr(_ops_of_backward(ctx.kernels), f"{ctx.op}_backward")(delta, *args)
        return None, None, gradient, *([None] * (len(ctx.others) - 1))


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
