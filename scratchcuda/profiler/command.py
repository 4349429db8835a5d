"""``scratchcuda profile``."""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scratchcuda._json import dumps
from scratchcuda.compare import Pair
from scratchcuda.engine.linear_regression import SimpleLinearRegression
from scratchcuda.options import (
    OUTPUT,
    Activated,
    Batch,
    Device,
    Json,
    Named,
    Sizes,
    Threads,
    check_device,
    check_file,
    check_folder,
    check_name,
    measured,
    number,
    trained,
    workload_of,
    write,
    written,
)
from scratchcuda.profiler import kernels, profile
from scratchcuda.profiler.findings import FILES
from scratchcuda.profiler.record import Ranges
from scratchcuda.profiler.subjects import FitSubject
from scratchcuda.profiler.tables import SORTS
from scratchcuda.tables import open_console

shown = partial(typer.Option, rich_help_panel="What is shown")
of_nsight = partial(typer.Option, rich_help_panel="Nsight")

DTYPES = ("float64", "float32", "bfloat16", "float16")


def profile_command(
    workload: Named = None,
    sizes: Sizes = None,
    activation: Activated = None,
    batch: Batch = None,
    dtype: Annotated[str, trained(metavar="DTYPE", help=f"Of {', '.join(DTYPES)}.")] = "float32",
    device: Device = "cpu",
    threads: Threads = 1,
    samples: Annotated[int, measured(callback=number(2), metavar="N", help="Measurements of each time.")] = 15,
    compile_: Annotated[
        bool,
        measured("--compile/--no-compile", help="Compare with torch.compile, which takes its time."),
    ] = True,
    top: Annotated[
        int,
        shown(callback=number(1), metavar="N", help="Layers and ops to show; the files have all."),
    ] = 15,
    sort: Annotated[
        str,
        shown(metavar="WHAT", help=f"What the most expensive ones are chosen by, of {', '.join(SORTS)}."),
    ] = "time",
    out: Annotated[
        Path | None,
        written(metavar="FOLDER", help="Write the report, plots, JSON and trace into it."),
    ] = None,
    json_file: Json = None,
    steps_only: Annotated[
        int | None,
        of_nsight(callback=number(1), metavar="N", help="Run so many steps with their ranges, and end."),
    ] = None,
    ncu: Annotated[
        bool,
        of_nsight("--ncu", help="Print the command line for Nsight Compute, and end."),
    ] = False,
    nsys: Annotated[
        bool,
        of_nsight("--nsys", help="Print the command line for Nsight Systems, and end."),
    ] = False,
) -> None:
    """Profile a training step: for each op its times, its least work, what limits it, and the time that torch takes.

    \b
    For example:
    scratchcuda profile digits --out report
    scratchcuda profile --sizes 1024,4096,10 --batch 512 --dtype bfloat16
    """
    check_folder(out, "--out", FILES)
    check_file(json_file, "--json")
    check_name(dtype, DTYPES, "--dtype")
    check_name(sort, SORTS, "--sort")
    where = torch.device("cpu") if ncu or nsys else check_device(device)
    work = workload_of(workload, sizes, activation, batch, where, batches=1)
    if ncu or nsys:  # a command line for another machine, say, whose device this one need not have
        arguments = [argument for argument in sys.argv[2:] if argument not in ("--ncu", "--nsys")]
        typer.echo("\n".join(kernels.nsight(tool, arguments) for tool, on in (("ncu", ncu), ("nsys", nsys)) if on))
        return
    torch.set_num_threads(threads)
    pair = Pair(work, device, getattr(torch, dtype), seed=0)
    size = work.batch_size
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
            title=f"{work.title}, {dtype}, batch of {size}",
            samples=samples,
            progress=lambda done, total: bar.update(task, completed=done, total=total, description="ops"),
        )
    from scratchcuda.profiler import report  # with what it imports, no command has to wait for it to begin

    to_output = json_file == OUTPUT
    report.show(found, top, sort, open_console(stderr=to_output))
    if out is not None:
        typer.echo("\n".join(map(str, found.save(out))), err=to_output)
    if json_file is not None:
        write(dumps(found.as_dict()), json_file)


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
