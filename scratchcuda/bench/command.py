"""``scratchcuda bench``."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from scratchcuda import conditions
from scratchcuda.bench import fits, rows
from scratchcuda.bench.agreement import TOLERANCE
from scratchcuda.bench.run import run
from scratchcuda.bench.show import show
from scratchcuda.compare import ACTIVATIONS
from scratchcuda.options import network_of
from scratchcuda.profiler import ceilings
from scratchcuda.profiler.clocks import HostClock, clock_of

#: Samples that a clock takes of an op in each turn.
SAMPLES = 5


def bench_command(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART]...", help=f"Of {', '.join(rows.PARTS)}; all but ops, on a GPU all, if not given."
        ),
    ] = None,
    workload: Annotated[list[str] | None, typer.Option(help="Of fits and steps; may be repeated.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only rows whose name contains this; may be repeated.")] = None,
    sizes: Annotated[str | None, typer.Option(help="A network of its own for fits and steps, as 1024,4096,10.")] = None,
    activation: Annotated[str, typer.Option(help=f"Of --sizes: {', '.join(ACTIVATIONS)}.")] = "relu",
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step of --sizes.")] = 64,
    dtype: Annotated[str | None, typer.Option(help=f"Of fits and steps: {', '.join(TOLERANCE)}.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[
        int | None, typer.Option(min=2, help="Measurements of each peer; each part's own if not given.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="No row begins after these, from the start of the process.")] = float(
        "inf"
    ),
    peers: Annotated[
        list[str] | None, typer.Option(help="Of fits, steps and scaling, beside torch.nn; may be repeated.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything into this JSON file.")] = None,
    dry: Annotated[
        bool, typer.Option(help="All of it, tiny, on the CPU: it shows that it runs, and measures nothing.")
    ] = False,
) -> None:
    """Measure fits, steps and ops beside torch.nn, torch.compile, JAX, scikit-learn and the documents' code.

    All take turns, and who comes to another result than torch.nn gets no ratio. Exit status 1 if a row could not be
    measured.
    """
    where = torch.device("cpu" if dry else device)
    try:
        conditions.settle(where)
    except RuntimeError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    known = rows.workloads(where, dry)
    chosen = {name: known[name] for name in _of(known, workload, "--workload") or ([] if sizes else rows.DTYPES)}
    if sizes:
        chosen[f"{sizes} {activation} batch {batch}"] = network_of(sizes, activation, batch, epochs=4)
    usual = [part for part in rows.PARTS if part != "ops" or where.type == "cuda" or dry]
    usual = ["fits", "steps"] if workload or sizes else usual
    wanted = _of(rows.PARTS, parts, "PART") or usual
    dtypes = _of(TOLERANCE, [dtype] if dtype else None, "--dtype")
    _of(fits.PEERS, peers, "--peers")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise typer.BadParameter(f"{json_file} is in no existing folder", param_hint="--json")

    clock = HostClock(2, least=0, flushed=1) if dry else clock_of(where, SAMPLES)
    limits = ceilings.measure(clock, 1 << 10, 16) if dry else ceilings.of(clock)
    options = rows.Options(clock, limits, chosen, dtypes, rounds, peers or (), dry)
    todo = [found for found in rows.rows(options, wanted) if any(text in found.label for text in row or [""])]
    if not todo:
        raise typer.BadParameter(f"no row of {', '.join(wanted)} is named like {row}", param_hint="--row")
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # all columns of a table
    begun = time.perf_counter()
    result = conditions.conditions(where) | {"dry": dry, "ceilings": vars(limits)}
    loudly = ", A DRY RUN ON THE CPU: IT MEASURES NOTHING" if dry else ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    console.print(f"{result['device']}, {result['threads']} thread(s), {versions}{loudly}", highlight=False)
    console.print(
        "faster: torch.nn's time divided by the peer's, the median of the rounds, from lower to upper quartile; of "
        "small steps the ends of the median's 95 % interval. A tie if these enclose 1. *: the fastest, or as fast."
    )
    run(result, todo, seconds=seconds - conditions.age(), file=json_file, show=lambda row: show(row, console))
    if result["left out"]:
        console.print(f"left out, for want of time: {', '.join(result['left out'])}")
    if result["bars"]:
        console.print(_bars(result["bars"], dry))
    console.print(f"{time.perf_counter() - begun:.0f} s on {result['device']}{loudly}", highlight=False)
    raise typer.Exit(any("error" in row for row in result["rows"]))


def _of(known: Iterable[str], names: list[str] | None, hint: str) -> list[str]:
    """The names, if all are known."""
    if unknown := set(names or []) - set(known):
        text = f"unknown {', '.join(sorted(unknown))}, expected of {', '.join(known)}"
        raise typer.BadParameter(text, param_hint=hint)
    return names or []


def _bars(bars: list[dict[str, Any]], dry: bool) -> Table:
    table = Table("bar", "target", "measured", "reached", box=None)
    for bar in bars:
        measured = "" if bar["measured"] is None else f"{bar['measured']:.3g}"
        reached = {None: "unknown", True: "yes", False: "DRY RUN" if dry else "no"}[bar["reached"]]
        table.add_row(bar["bar"], f"{bar['target']:.3g}", measured, reached)
    return table
