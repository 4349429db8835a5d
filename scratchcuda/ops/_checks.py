"""Checks of arguments. Every error names the argument, what it got and what it expects."""

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__}, expected a torch.Tensor")


def floating(name: str, value: Tensor) -> None:
    tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}, expected a floating-point dtype")


def real(name: str, value: Tensor) -> None:
    """Of any dtype that numbers have."""
    tensor(name, value)
    if value.is_complex():
        raise TypeError(f"{name} has dtype {value.dtype}, expected a real dtype")


def comparable(value: Tensor) -> Tensor:
    """The same numbers, in int64 if they are integers: torch compares no unsigned ones of more than 8 bits."""
    return value if value.is_floating_point() else value.long()


def float_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype}, expected a floating-point dtype")


def alike(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """One dtype and one device, as the products beneath need."""
    tensor(name, value)
    if value.dtype != other.dtype:
        raise TypeError(f"{name} has dtype {value.dtype}, expected {other.dtype} as {other_name}")
    on_device(name, value, other_name, other.device)


def on_device(name: str, value: Tensor, other_name: str, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} is on device {value.device}, expected {device} as {other_name}")


def shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if value.shape != expected:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {expected}")


def spreads(value: Tensor, to: Tensor) -> bool:
    """Whether it broadcasts to this shape."""
    sizes = zip(reversed(value.shape), reversed(to.shape), strict=False)
    return value.dim() <= to.dim() and all(size in (1, whole) for size, whole in sizes)


def broadcasts(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if not spreads(value, other):
        expected = f"one that broadcasts to {tuple(other.shape)} as {other_name}"
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {expected}")


def writable(name: str, value: Tensor) -> None:
    """Every element has memory of its own."""
    if any(stride == 0 and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True)):
        raise ValueError(f"{name} is expanded (strides {value.stride()}), expected memory of its own for each element")


def apart(written: Mapping[str, Sequence[Tensor]], read: Mapping[str, Sequence[Tensor]]) -> None:
    """No tensor to be written shares memory with another, as far as those without gaps between elements can tell."""
    if shared := shared_memory(written, read):
        raise ValueError(f"{shared[0]} shares memory with {shared[1]}, expected memory of its own")


def shared_memory(
    written: Mapping[str, Sequence[Tensor]], read: Mapping[str, Sequence[Tensor]], gaps: bool = False
) -> tuple[str, str] | None:
    """The names of two tensors that share memory, of which one is to be written; tensors with gaps only if asked.

    These are taken as if they had none, so what lies in a gap counts too.
    """
    if torch.compiler.is_compiling():
        return None
    named = [
        (f"{name}[{i}]" if len(tensors) > 1 else name, tensor, group is written)
        for group in (written, read)
        for name, tensors in group.items()
        for i, tensor in enumerate(tensors)
        if tensor.numel() and type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta
        if tensor.layout is torch.strided
    ]
    if len({tensor.untyped_storage().data_ptr() for _, tensor, _ in named}) == len(named):
        return None
    spans = []
    for name, tensor, is_written in named:
        reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if gaps or reach == tensor.numel():
            spans.append((tensor.data_ptr(), tensor.data_ptr() + reach * tensor.itemsize, name, is_written))
    furthest = {True: (0, ""), False: (0, "")}  # of those written and those read, which one ends last
    for begin, end, name, is_written in sorted(spans):
        for other_is_written, (other_end, other) in furthest.items():
            if begin < other_end and (is_written or other_is_written):
                return name, other
        furthest[is_written] = max(furthest[is_written], (end, name))
    return None


def tensors(name: str, value: Any) -> list[Tensor]:
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} is {type(value).__name__}, expected a sequence of tensors") from None


def update(
    params: list[Tensor], grads: list[Tensor], state: Mapping[str, list[Tensor]], rates: Any, turn: Any, columns: int
) -> None:
    """What an optimizer updates in place: parameters, and in each list of its state one tensor for each of them.

    ``rates`` (steps, columns) are the numbers of all steps, ``turn`` () that of this one; both may be None.
    """
    for i, p in enumerate(params):
        floating(f"params[{i}]", p)
        on_device(f"params[{i}]", p, "params[0]", params[0].device)
        writable(f"params[{i}]", p)
    for name, beside in {"grads": grads, **state}.items():
        if len(beside) != len(params):
            raise ValueError(f"{name} has {len(beside)} tensors, expected {len(params)} as params")
        for i, (p, value) in enumerate(zip(params, beside, strict=True)):
            alike(f"{name}[{i}]", value, f"params[{i}]", p)
            shape(f"{name}[{i}]", value, tuple(p.shape))
            if name != "grads":
                writable(f"{name}[{i}]", value)
    read = {"grads": grads}
    if rates is not None or turn is not None:
        tensor("rates", rates)
        if rates.dtype != torch.float64:
            raise TypeError(f"rates has dtype {rates.dtype}, expected torch.float64")
        if rates.dim() != 2 or rates.shape[1] != columns or not len(rates):
            raise ValueError(f"rates has shape {tuple(rates.shape)}, expected (steps, {columns}), at least one step")
        numbers("turn", turn, rates, 0)
        for p in params[:1]:
            on_device("rates", rates, "params[0]", p.device)
        read |= {"rates": [rates], "turn": [turn]}
    apart({"params": params, **state}, read)


def one_of(name: str, value: object, expected: Collection[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, expected one of {', '.join(expected)}")
    if value not in expected:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(expected)}")


def dim(name: str, value: Any, tensor_name: str, tensor: Tensor) -> int:
    number, dims = integer(name, value), max(1, tensor.dim())
    if not -dims <= number < dims:
        raise ValueError(f"{name} is {number}, expected one of the {dims} of {tensor_name} {tuple(tensor.shape)}")
    return number


def features(name: str, value: Tensor, expected: int) -> None:
    if value.dim() == 0 or value.shape[-1] != expected:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {expected} features as its last dimension")


def outputs(delta: Tensor, a: Tensor, name: str = "a") -> None:
    """A gradient, and the outputs (or inputs) of an activation, of one shape."""
    floating("delta", delta)
    alike(name, a, "delta", delta)
    shape(name, a, tuple(delta.shape))


def numbers(name: str, value: Tensor, beside: Tensor, dims: int) -> None:
    """Of samples or of a step, (samples,) or ()."""
    tensor(name, value)
    on_device(name, value, "the data", beside.device)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} has dtype {value.dtype}, expected torch.int64")
    if value.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {'(samples,)' if dims else '()'}")


def not_empty(name: str, value: Tensor) -> None:
    if value.numel() == 0:
        raise ValueError(f"{name} is empty (shape {tuple(value.shape)}), expected at least one sample")


def same_length(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.shape[:1] != other.shape[:1] or not value.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {len(other)} samples as {other_name}")


def class_indices(name: str, value: Tensor, classes: int | None) -> None:
    """Integers from 0 to classes - 1. That reads the tensor, so on a GPU it waits for it; None leaves them unread."""
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {value.dtype}, expected integer class indices")
    if classes is not None and value.numel() and not value.is_meta:
        low, high = map(int, value.long().aminmax())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise ValueError(f"{name} holds class index {wrong}, expected 0 to {classes - 1}")


def integer(name: str, value: Any, expected: str = "an integer") -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected {expected}")


def positive_int(name: str, value: Any) -> int:
    number = 0 if isinstance(value, bool) else integer(name, value, "a positive integer")
    if number < 1:
        raise ValueError(f"{name} is {value!r}, expected a positive integer")
    return number


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected True or False")


def finite(name: str, value: Any, expected: str = "a finite number") -> float:
    if not hasattr(value, "__float__"):  # text has none, though float() would read it
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # of several, as an array has
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, expected {expected}")
    return number


def at_least(name: str, value: Any, least: float) -> float:
    """A finite number."""
    if type(value) in (float, int) and -math.inf < value < math.inf and value >= least:  # torch.compile's follow this
        return float(value)
    expected = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
    number = finite(name, value, expected)
    if number < least:
        raise ValueError(f"{name} is {number}, expected {expected}")
    return number


def between(name: str, value: Any, low: float, high: float) -> float:
    if type(value) in (float, int) and low <= value <= high:
        return float(value)
    number = finite(name, value, expected := f"a number from {low:g} to {high:g}")
    if not low <= number <= high:
        raise ValueError(f"{name} is {number}, expected {expected}")
    return number


def non_negative(name: str, value: Any) -> float:
    """A learning rate or a weight decay."""
    return at_least(name, value, 0)


def nesterov(value: bool, momentum: float, dampening: float) -> None:
    """Nesterov's momentum, as torch.optim.SGD has it."""
    if value and (momentum == 0 or dampening != 0):
        raise ValueError(f"nesterov needs momentum and no dampening, got momentum {momentum}, dampening {dampening}")


def betas(value: Any) -> tuple[float, float]:
    """Of two averages, each at least 0 and less than 1."""
    try:
        beta1, beta2 = value
    except (TypeError, ValueError):
        raise TypeError(f"betas is {value!r}, expected two numbers") from None
    first, second = at_least("betas[0]", beta1, 0), at_least("betas[1]", beta2, 0)
    for i, beta in enumerate((first, second)):
        if beta >= 1:
            raise ValueError(f"betas[{i}] is {beta}, expected a number of at least 0 and less than 1")
    return first, second


def weights(name: str, value: Any) -> Tensor:
    """Factors of the samples or of the classes, finite and at least 0. That reads them."""
    found = value if isinstance(value, Tensor) else as_tensor(name, value)
    real(name, found)
    found = comparable(found)
    if found.dim() != 1:
        raise ValueError(f"{name} has shape {tuple(found.shape)}, expected one dimension")
    if (wrong := found[~((found >= 0) & (found < math.inf))]).numel():
        raise ValueError(f"{name} holds {wrong[0].item()}, expected finite numbers of at least 0")
    return found if found.is_floating_point() else found.double()


def as_tensor(name: str, value: Any) -> Tensor:
    """A NumPy array, what has one (as a pandas.Series), or a list, on the CPU; Python's floats in float64."""
    given = value
    try:
        if hasattr(value, "filled") and hasattr(value, "mask"):
            raise TypeError("it is masked: write filled(...) for what is to stand in the masked places, or select rows")
        if hasattr(value, "__array__"):
            array = value.__array__()
            # torch takes neither objects, negative strides nor foreign byte orders, and warns of read-only memory.
            is_plain = array.dtype.kind != "O"
            value = array.astype(array.dtype.newbyteorder("="), order="C") if is_plain else array.tolist()
        if text := _text(value):
            raise TypeError(f"it holds {str(text)!r}: np.unique(..., return_inverse=True)[1] gives numbers of classes")
        converted = torch.as_tensor(value, device="cpu")
        floats = isinstance(value, list | tuple | float) and converted.is_floating_point()
        return torch.as_tensor(value, dtype=torch.float64, device="cpu") if floats else converted
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} is {type(given).__name__}, expected a tensor, a NumPy array or a list of numbers ({error})"
        ) from None


def _text(value: Any) -> str | bytes | None:
    """The first element, if it is text."""
    if isinstance(value, str | bytes):
        return value
    is_nested = isinstance(value, list | tuple) or getattr(getattr(value, "dtype", None), "kind", "") in ("S", "U")
    return _text(value[0]) if is_nested and len(value) else None
