"""The command line."""

import json
import math
import statistics
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from scratchcuda import __version__, _backend, doctor
from scratchcuda.bench.command import bench_command
from scratchcuda.compare import Comparison, compare
from scratchcuda.options import check_device
from scratchcuda.profiler.command import profile_command

mpl.use("agg")
from matplotlib import pyplot as plt  # the backend is chosen first

#: Longer trajectories are printed with some of their epochs; the JSON file has them all.
TABLE_ROWS = 40

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class WorkloadName(StrEnum):
    """The names of WORKLOADS."""

    slr = "slr"
    mlp = "mlp"
    digits = "digits"
    diabetes = "diabetes"
    breast_cancer = "breast-cancer"


class Dtype(StrEnum):
    """Dtypes in which trajectories can be compared."""

    float64 = "float64"
    float32 = "float32"


def _version(value: bool) -> None:
    if value:
        typer.echo(f"scratchcuda {__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """Neural networks trained from scratch, step by step as torch.nn trains them."""


@app.command("compare")
def compare_command(
    workload: Annotated[WorkloadName, typer.Argument(help="What to train.")] = WorkloadName.mlp,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Floating-point type.")] = Dtype.float64,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data; the workload's own if not given.")
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate; the workload's own if not given.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of a step; the workload's own if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the data and the initial values.")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of torch.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="How often each fit is timed.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Draw both trajectories into this PNG file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything into this JSON file.")] = None,
) -> None:
    """Train scratch and torch.nn from the same parameters, and show how far they are apart.

    Exit status 1 if they disagree.
    """
    for option, path in (("--plot", plot), ("--json", json_file)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise typer.BadParameter(f"{path} is no file in an existing folder", param_hint=option)
    if lr is not None and not math.isfinite(lr):
        raise typer.BadParameter(f"{lr} is not finite", param_hint="--lr")
    check_device(device)
    torch.set_num_threads(threads)
    console = Console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("data", total=2 * repeats)
        fits = -1

        def progress(stage: str) -> None:
            nonlocal fits
            fits += 1
            bar.update(task, completed=fits, description=stage)

        found = compare(
            workload.value,
            device=device,
            dtype=dtype.value,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
            repeats=repeats,
            progress=progress,
        )
    show(found, console)
    if plot is not None:
        draw(found, plot)
        console.print(f"Plot: {plot}")
    if json_file is not None:
        json_file.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
        console.print(f"JSON: {json_file}")
    if not found.agrees:
        raise typer.Exit(1)


app.command("profile")(profile_command)


@app.command("doctor")
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what is here to run and build the kernels with, what serves CUDA and CPU tensors and why, and what to type.

    Exit status 1 if CUDA was asked for, with FORCE_CUDA=1 or SCRATCHCUDA_BACKEND=kernels, and cannot work.
    """
    raise typer.Exit(doctor.run(as_json))


app.command("bench")(bench_command)


def show(found: Comparison, console: Console) -> None:
    """Print the tables and the verdict."""
    console.print(f"[bold]{found.title}[/bold]", highlight=False)
    console.print(
        f"{found.dtype} on {found.device}, {found.epochs} epochs, lr {found.lr:g}, batches of {found.batch_size}, "
        f"seed {found.seed}, {found.threads} thread{'s' * (found.threads > 1)}, torch {found.versions['torch']}",
        highlight=False,
        soft_wrap=True,
    )
    losses = Table("epoch", *(f"{kind}\n{who}" for kind in ("train", "valid") for who in ("scratch", "torch.nn")))
    losses.add_column("largest\ndifference")
    for column in losses.columns:
        column.justify = "right"
    step = -(-found.epochs // TABLE_ROWS)
    rows = zip(found.scratch.train, found.torch.train, found.scratch.valid, found.torch.valid, strict=True)
    for epoch, (values, difference) in enumerate(zip(rows, found.differences, strict=True)):
        if epoch % step == 0 or epoch == found.epochs - 1:
            losses.add_row(str(epoch), *(f"{value:.4f}" for value in values), f"{difference:.1e}")
    console.print(losses)
    if step > 1:
        console.print(f"Every {step}. epoch is shown; --json writes all.")
    layers = Table("MAPE of", "weights", "biases")
    for i, layer in enumerate(found.layers):
        layers.add_row(f"layer {i}", f"{layer['w']:.1e}", f"{layer['b']:.1e}")
    console.print(layers)
    console.print(
        f"MAPE of predictions: {found.mape_before:.1e} before training, {found.mape_after:.1e} after",
        highlight=False,
        soft_wrap=True,
    )
    ours, theirs = (1e3 * statistics.median(times) for times in (found.scratch_seconds, found.torch_seconds))
    times = (
        f"scratch {ours:.1f} ms ({found.path}), torch.nn {theirs:.1f} ms, "
        f"ratio {found.ratio:.1f} (medians of {len(found.scratch_seconds)})"
    )
    if _backend.current == "emulator":
        times = f"scratch on the emulator ({found.path}), whose time is no speed"
    console.print(f"Whole fit with validation: {times}", highlight=False, soft_wrap=True)
    if math.isnan(found.worst):
        verdict = "[red]They cannot be compared[/red]: the training diverged to NaN. A smaller --lr may help."
    else:
        word = "[green]They agree[/green]" if found.agrees else "[red]They disagree[/red]"
        side = "within" if found.agrees else "beyond"
        verdict = f"{word}: the largest relative difference is {found.worst:.1e}, {side} the tolerance of "
        verdict += f"{found.tolerance:.1e}."
        if not found.agrees:
            verdict += " Either one of them is wrong, or this training is unstable and amplifies rounding."
    console.print(verdict, soft_wrap=True)


def draw(found: Comparison, path: Path) -> None:
    """Both trajectories above, their relative difference below."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 2), layout="constrained")
    epochs = range(found.epochs)
    for kind, shade, marker in (("train", "tab:blue", "o"), ("valid", "tab:orange", "s")):
        name = {"train": "training", "valid": "validation"}[kind]
        above.plot(epochs, getattr(found.torch, kind), color=shade, alpha=0.4, lw=6, label=f"{name}, torch.nn")
        ours = getattr(found.scratch, kind)
        mark = {"marker": marker, "ms": 4, "markevery": max(1, found.epochs // 20)}
        above.plot(epochs, ours, color="black", lw=1, ls="--", label=f"{name}, scratch", **mark)
    losses = [*found.torch.train, *found.torch.valid]
    if 0 < 1000 * min(losses) < max(losses):
        above.set_yscale("log")
    above.set_ylabel("loss")
    above.set_title(f"{found.title}\n{found.dtype}, lr {found.lr:g}, batches of {found.batch_size}", fontsize=11)
    above.legend(frameon=False)
    unit = torch.finfo(getattr(torch, found.dtype)).eps
    below.plot(
        epochs, [max(d, unit / 10) for d in found.differences], "k.-", label="training or validation, the larger"
    )
    below.axhline(found.tolerance, color="tab:red", ls="--", label=f"tolerance {found.tolerance:.1e}")
    below.axhline(unit, color="gray", ls=":", label=f"rounding unit {unit:.1e}")
    below.set_yscale("log")
    below.set_ylabel("relative difference")
    below.set_xlabel("epoch (equal values are drawn at a tenth of the rounding unit)")
    below.xaxis.get_major_locator().set_params(integer=True)
    below.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)
