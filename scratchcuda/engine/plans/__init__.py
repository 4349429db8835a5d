"""Which plan serves a fit: on the CPU the tensor plan, where kernels serve the graph plan."""

import torch

from scratchcuda.engine.network import Network, Task
from scratchcuda.engine.parameters import Parameters
from scratchcuda.engine.plans import tensor as tensor_plan
from scratchcuda.engine.plans.graph import GraphPlan
from scratchcuda.engine.training import FitPath
from scratchcuda.ops import _backend


def plan_of(model: Parameters, network: Network, task: Task) -> FitPath | str:
    """A plan for one fit, or the reason why there is none.

    Args:
        model: whose network it is; what was captured for it is kept as long as it lives.
        network: what to train.
        task: on what, and how.
    """
    if _backend.current != "emulator" and (plan := tensor_plan.kept(model, network, task)):
        return plan
    if reason := network.unfit():
        return reason
    like = network.parameters[0]
    if like.is_cuda and _backend.current == "tensor":
        return "torch's tensor operations train layer by layer on a GPU"
    if like.is_cuda and (reason := _backend.kernels_unfit(like.device)):
        return reason
    if like.is_cuda or _backend.current == "emulator":
        return GraphPlan(model, network, task)
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        return "parameters are not all float32 or all float64 on the CPU"
    return tensor_plan.TensorPlan(model, network, task)
