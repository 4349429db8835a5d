"""What the twins of the updates have in common.

``rates`` are the numbers of all steps on the device: an update takes those of its turn, so that a CUDA Graph can replay
it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def of_turn(rates: Tensor, turn: Tensor) -> tuple[Tensor, ...]:
    """The row of this turn, which counts from 1, as numbers (); the nearest, where it is not there.

    Nothing waits for a GPU.
    """
    return rates.index_select(0, (turn - 1).clamp(0, len(rates) - 1).view(1))[0].unbind()


def restore(written: Sequence[Tensor], before: Sequence[Tensor], rates: Tensor, turn: Tensor) -> None:
    """What an update has written becomes what it was, if there is no row of this turn."""
    is_there = (turn >= 1) & (turn <= len(rates))
    for tensor, old in zip(written, before, strict=True):
        tensor.copy_(torch.where(is_there, tensor, old))


def scale(tensors: Sequence[Tensor], factor: Any) -> None:
    """In place. torch._foreach_mul_ would round a factor to 16 bits first, as torch's optimizers do not."""
    for tensor in tensors:
        tensor.mul_(factor)
