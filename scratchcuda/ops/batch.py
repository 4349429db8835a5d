"""The batch of a training step, gathered."""

import torch
from torch import Tensor

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._bytes import stored, total
from scratchcuda.ops._registry import operation

__all__ = ["take_batch_"]


@operation(
    "take_batch_(Tensor x, Tensor y, Tensor order, Tensor step, int batch_size, Tensor(a!) x_batch, "
    "Tensor(b!) y_batch) -> ()",
    # its rows of x and y are read and written; of the order so many numbers are read
    moved=lambda of, out: (
        2 * total([of["x_batch"], of["y_batch"]])
        + stored(of["order"]) // max(1, len(of["order"])) * len(of["x_batch"])
        + stored(of["step"])
    ),
)
def take_batch_twin(
    x: Tensor, y: Tensor, order: Tensor, step: Tensor, batch_size: int, x_batch: Tensor, y_batch: Tensor
) -> None:
    # x (samples, n_in), y (samples, ...), order (samples,), step () -> x_batch (m, n_in), y_batch (m, ...)
    rows = order[step * batch_size + torch.arange(len(x_batch), device=x.device)]
    torch.index_select(x, 0, rows, out=x_batch)
    torch.index_select(y, 0, rows, out=y_batch)


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
    _checks.numbers("order", order, x, 1)
    _checks.numbers("step", step, x, 0)
    batch_size = _checks.positive_int("batch_size", batch_size)
    read = {"x": [x], "y": [y], "order": [order], "step": [step]}
    _checks.apart({"x_batch": [x_batch], "y_batch": [y_batch]}, read)
    with torch.no_grad():
        _backend.serving("take_batch_", x, y, x_batch, y_batch)(x, y, order, step, batch_size, x_batch, y_batch)
    _backend.bump_versions(x_batch, y_batch)
