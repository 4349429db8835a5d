"""Which plan serves a fit: on the CPU the tensor plan, where kernels serve the graph plan."""

import torch
from torch import Tensor

from scratchcuda import _backend
from scratchcuda.graph_plan import GraphPlan
from scratchcuda.network import Network
from scratchcuda.tensor_plan import TensorPlan
from scratchcuda.training import FitPath


def plan_of(
    model: object,
    network: Network,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    lr: float,
    weight_decay: float,
    valid: tuple[Tensor, Tensor] | None,
) -> FitPath | str:
    """A plan for one fit, or the reason why there is none.

    Args:
        model: whose network it is; what was captured for it is kept as long as it lives.
        network: what to train.
        x: (samples, features).
        y: targets (samples, n_out), or class indices (samples,).
        batch_size, lr, weight_decay: as in Model.fit.
        valid: the same pair of tensors for validation, or None.
    """
    if reason := network.unfit():
        return reason
    like = network.parameters[0]
    if like.is_cuda and _backend.current == "tensor":
        return "torch's tensor operations train layer by layer on a GPU"
    if like.is_cuda and (reason := _backend.kernels_unfit(like.device)):
        return reason
    if like.is_cuda or _backend.current == "emulator":
        return GraphPlan(model, network, x, y, batch_size, lr, weight_decay, valid)
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        return "parameters are not all float32 or all float64 on the CPU"
    return TensorPlan(network, x, y, batch_size, lr, weight_decay, valid)
