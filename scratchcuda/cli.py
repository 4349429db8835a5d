"""The command line."""

import math
import statistics
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from scratchcuda import __version__, doctor
from scratchcuda._json import dumps
from scratchcuda.bench import fits
from scratchcuda.bench.command import bench_command
from scratchcuda.compare import Comparison, compare
from scratchcuda.ops import _backend
from scratchcuda.options import (
    NAMES,
    OUTPUT,
    Activated,
    Batch,
    Device,
    Json,
    Sizes,
    Threads,
    check_device,
    check_file,
    check_name,
    measured,
    number,
    trained,
    workload_of,
    write,
    written,
)
from scratchcuda.profiler.command import profile_command
from scratchcuda.tables import open_console, print_table

#: Longer trajectories are printed with some of their epochs; the JSON file has them all.
TABLE_ROWS = 40
#: Dtypes in which trajectories can be compared.
DTYPES = ("float64", "float32")
#: Of a picture, by its name's ending.
PICTURES = ("png", "svg", "pdf")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


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
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORKLOAD",
            help=f"Of {', '.join(NAMES)}; mlp, if --sizes is not given. Further ones are checked, in two lines each.",
        ),
    ] = None,
    sizes: Sizes = None,
    activation: Activated = None,
    batch: Batch = None,
    epochs: Annotated[
        int | None,
        trained(callback=number(1), metavar="N", help="Passes over the data; the workload's own if not given."),
    ] = None,
    lr: Annotated[
        float | None,
        trained(callback=number(0.0), metavar="X", help="Learning rate; the workload's own if not given."),
    ] = None,
    seed: Annotated[
        int,
        trained(callback=number(0, 2**32 - 1), metavar="N", help="Of the data and the initial values."),
    ] = 0,
    dtype: Annotated[str, trained(metavar="DTYPE", help=f"{' or '.join(DTYPES)}.")] = "float64",
    device: Device = "cpu",
    threads: Threads = 1,
    repeats: Annotated[int, measured(callback=number(1), metavar="N", help="How often each fit is timed.")] = 3,
    plot: Annotated[
        Path | None,
        written(metavar="FILE", help=f"Draw both trajectories of the first one: .{', .'.join(PICTURES)}."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Train scratchcuda and torch.nn from the same parameters, and show how far they are apart.

    Exit status 1 if they disagree.

    \b
    For example:
    scratchcuda compare digits --plot digits.png
    scratchcuda compare mlp slr diabetes
    scratchcuda compare --sizes 64,128,10 --activation tanh --epochs 20
    """
    check_file(plot, "--plot", PICTURES)
    check_file(json_file, "--json")
    check_name(dtype, DTYPES, "--dtype")
    if plot is not None and json_file is not None and plot.resolve() == json_file.resolve():
        raise typer.BadParameter(f"{json_file} is what --plot writes, expected another file", param_hint="--json")
    where = check_device(device)
    names: list[str | None] = [*workloads] if workloads else [None]
    works = [workload_of(name, sizes, activation, batch, where) for name in names]
    torch.set_num_threads(threads)
    console = open_console(stderr=json_file == OUTPUT)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("data", total=2 * repeats * len(works))
        fits = -1

        def progress(stage: str) -> None:
            nonlocal fits
            fits += 1
            bar.update(task, completed=fits, description=stage)

        train = partial(compare, device=device, dtype=dtype, epochs=epochs, lr=lr, seed=seed, repeats=repeats)
        first, *others = (train(work, progress=progress) for work in works)
    show(first, console)
    for found in others:
        console.print()
        show_briefly(found, console)
    if plot is not None:
        draw(first, plot)
    if json_file is not None:
        write(dumps(first.as_dict() | {"further": [found.as_dict() for found in others]}), json_file)
    raise typer.Exit(not all(found.agrees for found in (first, *others)))


app.command("profile")(profile_command)


@app.command("doctor")
def doctor_command(json_file: Json = None) -> None:
    """Say what is here to run and build the kernels with, what serves CUDA and CPU tensors and why, and what to type.

    Exit status 1 if CUDA was asked for, with FORCE_CUDA=1 or SCRATCHCUDA_BACKEND=kernels, and cannot work.

    \b
    For example:
    scratchcuda doctor
    scratchcuda doctor --json -
    """
    check_file(json_file, "--json")
    raise typer.Exit(doctor.run(None if json_file is None else str(json_file)))


app.command("bench", epilog=f"Of --peers: {', '.join(fits.KEYS)}.")(bench_command)


def show(found: Comparison, console: Console) -> None:
    """Print the tables and the verdict."""
    console.print(f"[bold]{found.title}[/bold]", highlight=False)
    console.print(
        f"{found.dtype} on {found.device}, {found.epochs} epochs, lr {found.lr:g}, batches of {found.batch_size}, "
        f"seed {found.seed}, {found.threads} thread{'s' * (found.threads > 1)}, torch {found.versions['torch']}",
        highlight=False,
    )
    losses = {"train": loss_text, "valid": loss_text} | (
        {"accuracy": "{:.1%}".format} if found.scratch.accuracy else {}
    )
    header = ["epoch", *(f"{kind} {who}" for kind in losses for who in ("scratch", "torch.nn")), "largest difference"]
    step = -(-found.epochs // TABLE_ROWS)
    rows = []
    for epoch, difference in enumerate(found.differences):
        if epoch % step == 0 or epoch == found.epochs - 1:
            values = [
                form(getattr(of, kind)[epoch]) for kind, form in losses.items() for of in (found.scratch, found.torch)
            ]
            rows.append([str(epoch), *values, f"{difference:.1e}"])
    print_table(console, header, rows)
    if step > 1:
        console.print(f"Every {step}. epoch is shown; --json writes all.")
    rows = [[f"layer {i}", f"{layer['w']:.1e}", f"{layer['b']:.1e}"] for i, layer in enumerate(found.layers)]
    console.print()
    print_table(console, ["MAPE of", "weights", "biases"], rows, words=["MAPE of"])
    console.print(
        f"MAPE of predictions: {found.mape_before:.1e} before training, {found.mape_after:.1e} after",
        highlight=False,
    )
    ours, theirs = (1e3 * statistics.median(times) for times in (found.scratch_seconds, found.torch_seconds))
    took = f"scratch {ours:.1f} ms ({found.path}), torch.nn {theirs:.1f} ms, "
    took += f"ratio {found.ratio:.1f} (medians of {len(found.scratch_seconds)})"
    if _backend.current == "emulator":
        took = f"scratch on the emulator ({found.path}), whose time is no speed"
    console.print(f"Whole fit with validation: {took}", highlight=False)
    console.print(verdict(found))


def show_briefly(found: Comparison, console: Console) -> None:
    """What was trained and what came of it, then the verdict."""
    losses, accuracy = found.scratch.train, found.scratch.accuracy
    text = f"{found.title}: loss {loss_text(losses[0])} to {loss_text(losses[-1])}"
    text += f", accuracy {accuracy[0]:.1%} to {accuracy[-1]:.1%}" if accuracy else ""
    text += f", {found.ratio:.1f} times as fast" if _backend.current != "emulator" else ""  # whose time is no speed
    console.print(text, highlight=False)
    console.print(verdict(found))


def loss_text(loss: float) -> str:
    """Four digits after the point, without all that stand before it where a training diverges."""
    return f"{loss:.4f}" if loss < 1e7 else f"{loss:.4e}"


def verdict(found: Comparison) -> str:
    if math.isnan(found.worst):
        losses = zip(found.scratch.train, found.scratch.valid, strict=True)
        ours = [math.isnan(train + valid) for train, valid in losses]
        if True in ours and all(map(math.isfinite, [*found.torch.train, *found.torch.valid])):
            return f"[red]They disagree[/red]: scratchcuda is NaN from epoch {ours.index(True)} on, torch.nn is not."
        return "[red]They cannot be compared[/red]: the training diverged to NaN. A smaller --lr may help."
    word = "[green]They agree[/green]" if found.agrees else "[red]They disagree[/red]"
    side = "within" if found.agrees else "beyond"
    text = (
        f"{word}: the largest relative difference is {found.worst:.1e}, {side} the tolerance of {found.tolerance:.1e}."
    )
    if not found.agrees:
        text += " Either one of them is wrong, or this training is unstable and amplifies rounding."
    return text


def draw(found: Comparison, path: Path) -> None:
    """Both trajectories above, their relative difference below."""
    from matplotlib.figure import Figure  # takes as long to import as a fit

    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
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
    figure.savefig(path, dpi=120)
