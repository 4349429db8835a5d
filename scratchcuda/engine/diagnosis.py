"""Why a fit's loss became NaN, as far as data, losses and dtype tell."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Losses of batches differ, but seldom by so much; a loss that has grown by this factor is taken to diverge.
GROWN = 10


def cause_of_nan(data: Sequence[tuple[str, Tensor]], losses: Sequence[float], lr: Any, dtype: torch.dtype) -> str:
    """The likely cause.

    Args:
        data: what was trained on, by the names of the arguments, (samples, ...) each.
        losses: of all steps before the first NaN.
        lr: the learning rate.
        dtype: of the parameters.
    """
    for name, values in data:
        wrong = (~values.isfinite()).reshape(len(values), -1)
        if wrong.any():
            sample = int(wrong.any(1).int().argmax())
            value = values.reshape(len(values), -1)[sample][wrong[sample]][0].item()
            return f"{name} holds {value} (sample {sample})"
    limit = torch.finfo(dtype).max
    if not losses or math.isinf(losses[0]):
        found = losses[0] if losses else math.nan
        return (
            f"it was {found} before any update, and the data are finite: parameters held NaN or inf when "
            f"the fit began, or made of the data what {dtype} cannot hold (beyond {limit:.6g})"
        )
    least, last = min(losses), losses[-1]
    if last > GROWN * least:
        cause = (
            f"lr is {lr:g}, too large: the loss had grown from {least:.4g} (step {losses.index(least)}) to {last:.4g}"
        )
    else:
        cause = f"the data are finite, and the loss before it was {last:.4g}; a smaller lr than {lr:g} may help"
    return cause + (f"; {dtype} holds nothing beyond {limit:g}" if dtype == torch.float16 else "")
