"""``scratchcuda profile``."""

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scratchcuda.compare import ACTIVATIONS, WORKLOADS, Pair, Workload
from scratchcuda.linear_regression import SimpleLinearRegression
from scratchcuda.options import check_device, network_of
from scratchcuda.profiler import kernels, profile
from scratchcuda.profiler.record import Ranges
from scratchcuda.profiler.subjects import FitSubject


class Profiled(StrEnum):
    """Workloads of which a step can be profiled by name."""

    slr = "slr"
    mlp = "mlp"
    digits = "digits"


class Dtype(StrEnum):
    """Floating-point types."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def profile_command(
    workload: Annotated[Profiled | None, typer.Argument(help="Whose training step; or give --sizes.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Of a perceptron, as 1024,4096,10: input, layers, output.")] = None,
    activation: Annotated[str, typer.Option(help=f"Of --sizes: {', '.join(ACTIVATIONS)}.")] = "relu",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples of the step; the workload's own, or 64, if not given.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Floating-point type.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of torch.")] = 1,
    samples: Annotated[int, typer.Option(min=2, help="Measurements of each time.")] = 15,
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compare with torch.compile, which takes its time.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Write the report, plots, JSON and trace into this folder.")] = None,
    steps_only: Annotated[int | None, typer.Option(min=1, help="Run so many steps with their ranges, and end.")] = None,
    ncu: Annotated[bool, typer.Option("--ncu", help="Print the command line for Nsight Compute, and end.")] = False,
    nsys: Annotated[bool, typer.Option("--nsys", help="Print the command line for Nsight Systems, and end.")] = False,
) -> None:
    """Profile a training step: for each op its times, its least work, what limits it, and the time that torch takes."""
    work = _workload(workload, sizes, activation, batch)
    if ncu or nsys:
        arguments = [argument for argument in sys.argv[2:] if argument not in ("--ncu", "--nsys")]
        typer.echo("\n".join(kernels.nsight(tool, arguments) for tool, on in (("ncu", ncu), ("nsys", nsys)) if on))
        return
    check_device(device)
    if out is not None and out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file, expected a folder", param_hint="--out")
    torch.set_num_threads(threads)
    pair = Pair(work, device, getattr(torch, dtype.value), seed=0)
    size = batch or work.batch_size
    if size > len(pair.x):
        raise typer.BadParameter(f"{size} is more than the {len(pair.x)} samples there are", param_hint="--batch")
    x, y = pair.x[:size], pair.y[:size]
    if isinstance(pair.scratch, SimpleLinearRegression):
        x, y = x.squeeze(-1), y.squeeze(-1)
    if steps_only:
        _steps(FitSubject(pair.scratch, x, y, work.lr), steps_only)
        return
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("ceilings")
        found = profile(
            pair.scratch,
            x,
            y,
            lr=work.lr,
            compile=compile_,
            title=f"{work.title}, {dtype.value}, batch of {size}",
            samples=samples,
            progress=lambda done, total: bar.update(task, completed=done, total=total, description="ops"),
        )
    found.show()
    if out is not None:
        typer.echo("\n".join(map(str, found.save(out))))


def _workload(workload: Profiled | None, sizes: str | None, activation: str, batch: int | None) -> Workload:
    if (workload is None) == (sizes is None):
        raise typer.BadParameter("give a workload or --sizes, and not both", param_hint="WORKLOAD")
    if workload is not None:
        return WORKLOADS[workload.value]
    assert sizes is not None
    return network_of(sizes, activation, batch or 64, batches=1)


def _steps(subject: FitSubject, count: int) -> None:
    """For Nsight: steps after a first one, which loads the kernels, within the range of the profiler API."""
    subject.show(Ranges())
    on_gpu = subject.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(subject.device)
        torch.cuda.profiler.start()
    for _ in range(count):
        subject.show(Ranges())
    if on_gpu:
        torch.cuda.synchronize(subject.device)
        torch.cuda.profiler.stop()
