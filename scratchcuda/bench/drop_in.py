"""Rows of training steps of small layers: scratchcuda.nn and scratchcuda.optim beside torch.nn, eager.

A step is zero_grad, forward, loss, backward and update of Linear, activation, Linear and MSELoss, all of one width. The
times are so short, and the differences so small, that it takes many short rounds, and their median's interval.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import scratchcuda
from scratchcuda.profiler.clocks import quartiles
from scratchcuda.profiler.turns import fastest, ratio, take_turns

TORCH = "torch.nn"
PEERS = (TORCH, "converted", "converted, fused")
WIDTHS, BATCHES, ACTIVATIONS = (16, 64, 256), (1, 32, 512), ("ReLU", "Tanh")

#: Seconds that a measurement takes at least.
LEAST = 5e-4


def step_of(peer: str, net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    module, optim = (torch.nn, torch.optim) if peer == TORCH else (scratchcuda.nn, scratchcuda.optim)
    if peer != TORCH:
        scratchcuda.nn.convert(net, fuse=peer == "converted, fused")
    loss_f, optimizer = module.MSELoss(), optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_f(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def measure(width: int, batch: int, activation: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """A row: of each peer the seconds of a step.

    Args:
        width: of both layers.
        batch: samples of a step.
        activation: a class of torch.nn.
        device: of the tensors.
        rounds: measurements of each, of :data:`LEAST` seconds or one step.
    """
    torch.manual_seed(0)
    first, second = (nn.Linear(width, width) for _ in range(2))
    net = nn.Sequential(first, getattr(nn, activation)(), second).to(device)
    x, y = torch.randn(2, batch, width).to(device)
    steps = {peer: step_of(peer, copy.deepcopy(net), x, y) for peer in PEERS}
    losses = {peer: torch.stack([step().detach() for _ in range(20)]).double() for peer, step in steps.items()}
    start = time.perf_counter()
    steps[TORCH]().item()
    count = 1 + int(LEAST / (time.perf_counter() - start))

    def several(step: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(count):
                step()

        return call

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = take_turns({peer: several(step) for peer, step in steps.items()}, rounds, after=wait)
    peers: dict[str, dict[str, Any]] = {}
    for peer in PEERS:
        samples = [seconds / count for seconds in times[peer]]  # a thousand: too many to keep
        difference = ((losses[peer] - losses[TORCH]) / losses[TORCH]).abs().max().item()
        peers[peer] = {"seconds": quartiles(samples), "difference": difference}
        peers[peer]["agrees"] = difference <= 1e-5  # roundings of twenty steps in float32
        if peers[peer]["agrees"]:
            peers[peer]["ratio"] = ratio(times[TORCH], times[peer])
    row = {"kind": "small step", "width": width, "batch size": batch, "activation": activation, "dtype": "float32"}
    agreeing = {peer: times[peer] for peer in PEERS if peers[peer]["agrees"]}
    return row | {
        "spread": "interval",
        "peers": peers,
        "fastest": fastest(agreeing, TORCH, "interval"),
        "notes": {},
    }
