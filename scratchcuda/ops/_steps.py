"""What the losses share: as a training step takes them, they write the loss into its place."""

from typing import Any

import torch
from torch import Tensor

from scratchcuda.ops import _backend, _checks
from scratchcuda.ops._bytes import stored, total


def step_bytes(of: dict[str, Any], out: Any) -> int:
    """Of the losses one place is written."""
    read = [value for name, value in of.items() if name != "losses"]
    return total(read) + total(out) + of["losses"].itemsize + stored(of["step"])


def record(loss: Tensor, gradient: Tensor, losses: Tensor, step: Tensor) -> Tensor:
    # losses (steps,), step ()
    here = torch.arange(len(losses), device=losses.device) == step
    losses.copy_(torch.where(here, loss, losses))
    step.add_(1)
    return gradient


def take_step(
    name: str, first: str, y_pred: Tensor, y_true: Tensor, losses: Tensor, step: Tensor, *options: Any
) -> Tensor:
    _checks.alike("losses", losses, first, y_pred)
    if losses.dim() != 1:
        raise ValueError(f"losses has shape {tuple(losses.shape)}, expected (steps,)")
    _checks.writable("losses", losses)
    _checks.numbers("step", step, y_pred, 0)
    tensors = y_pred, y_true, *(option for option in options if isinstance(option, Tensor))
    with torch.no_grad():
        gradient: Tensor = _backend.serving(name, *tensors)(y_pred, y_true, losses, step, *options)
    _backend.bump_versions(losses, step)
    return gradient
