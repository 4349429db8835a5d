"""Checks of options that several commands share; each raises typer.BadParameter."""

import torch
import typer

from scratchcuda.compare import Workload, network


def check_device(device: str) -> None:
    """``--device``: one that torch can use."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(str(error).splitlines()[0], param_hint="--device") from None


def network_of(sizes: str, activation: str, batch_size: int, *, batches: int = 4, epochs: int = 1) -> Workload:
    """``--sizes`` as 1024,4096,10, with ``--activation`` and ``--batch``: the network of :func:`compare.network`."""
    try:
        return network([int(size) for size in sizes.split(",")], activation, batch_size, batches, epochs)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sizes") from None
