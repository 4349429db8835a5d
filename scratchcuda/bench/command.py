"""``scratchcuda bench``."""

import logging
import time
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console

from scratchcuda import conditions
from scratchcuda.bench import fits, rows
from scratchcuda.bench.agreement import TOLERANCE
from scratchcuda.bench.run import dumps, run
from scratchcuda.bench.show import show
from scratchcuda.compare import workloads
from scratchcuda.ops import _backend
from scratchcuda.options import (
    NAMES,
    OUTPUT,
    Activated,
    Batch,
    Device,
    Json,
    Sizes,
    check_device,
    check_file,
    check_names,
    measured,
    number,
    trained,
    workload_of,
)
from scratchcuda.profiler import ceilings
from scratchcuda.profiler.clocks import HostClock, clock_of
from scratchcuda.tables import open_console, print_table

#: Samples that a clock takes of an op in each turn.
SAMPLES = 5


def bench_command(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART", help=f"Of {', '.join(rows.PARTS)}; all but ops, on a GPU all, if not given."),
    ] = None,
    workload: Annotated[
        list[str] | None,
        trained(metavar="NAME,...", help=f"Of fits and steps: {', '.join(NAMES)}."),
    ] = None,
    sizes: Sizes = None,
    activation: Activated = None,
    batch: Batch = None,
    dtype: Annotated[
        list[str] | None,
        trained(metavar="DTYPE,...", help=f"Of fits and steps: {', '.join(TOLERANCE)}."),
    ] = None,
    device: Device = "cpu",
    peers: Annotated[
        list[str] | None,
        measured(metavar="NAME,...", help="Of fits, steps and scaling, beside torch.nn; all are named below."),
    ] = None,
    row: Annotated[
        list[str] | None,
        measured(metavar="TEXT", help="Only rows whose name holds this, as 'digits float32'; may be repeated."),
    ] = None,
    rounds: Annotated[
        int | None,
        measured(callback=number(2), metavar="N", help="Measurements of each peer; each part's own if not given."),
    ] = None,
    seconds: Annotated[
        float | None,
        measured(callback=number(1.0), metavar="X", help="No row begins after these, from the start of the process."),
    ] = None,
    dry: Annotated[
        bool,
        measured("--dry", help="All of it, tiny, on the CPU: it shows that it runs, and measures nothing."),
    ] = False,
    json_file: Json = None,
) -> None:
    """Measure fits, steps and ops beside torch.nn, torch.compile, JAX, scikit-learn and the documents' code.

    All take turns, and who comes to another result than torch.nn gets no ratio.

    Exit status 1 if a row could not be measured.

    \b
    For example:
    scratchcuda bench fits --workload digits --json digits.json
    scratchcuda bench fits --sizes 64,256,10 --peers scratchcuda,torch.compile
    """
    check_file(json_file, "--json")
    where = check_device("cpu" if dry else device)
    try:
        conditions.settle(where)
    except RuntimeError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None
    known = workloads(where) | (rows.TINY if dry else {})
    names = check_names(workload, known, "--workload")
    chosen = {name: known[name] for name in names or rows.DTYPES}
    if sizes is not None or activation is not None:
        work = workload_of(", ".join(names) or None, sizes, activation, batch, where)
        chosen = {f"{sizes} {activation or 'relu'}": work}
    elif batch is not None:
        chosen = {name: replace(work, batch_size=batch) for name, work in chosen.items()}
    training = {"--workload": workload, "--sizes": sizes, "--batch": batch, "--dtype": dtype}
    usual = [part for part in rows.PARTS if part != "ops" or where.type == "cuda" or dry]
    usual = ["fits", "steps"] if any(value is not None for value in training.values()) else usual
    wanted = check_names(parts, rows.PARTS, "PART") or usual
    for option, value in (training | {"--peers": peers}).items():
        owners = ["fits", "steps", *["scaling"] * (option == "--peers")]
        if value is not None and not set(owners) & set(wanted):
            text = f"it belongs to {', '.join(owners)}, none of which is given"
            raise typer.BadParameter(text, param_hint=option)
    dtypes = check_names(dtype, TOLERANCE, "--dtype")
    beside = [fits.KEYS[key] for key in check_names(peers, fits.KEYS, "--peers")]

    clock = HostClock(2, least=0, flushed=1) if dry else clock_of(where, SAMPLES)
    limits = ceilings.measure(clock, 1 << 10, 16) if dry else ceilings.of(clock)
    options = rows.Options(clock, limits, chosen, dtypes, rounds, beside, batch, dry)
    every = rows.rows(options, wanted)
    todo = [found for found in every if any(text in found.label for text in row or [""])]
    if not todo:
        some = "; ".join(found.label for found in every[:8])
        text = f"no row's name holds {' or '.join(map(repr, row or ()))}, expected a part of one, as of {some}"
        raise typer.BadParameter(text, param_hint="--row")
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # what it cannot trace is no news of a benchmark
    to_output = json_file == OUTPUT
    console = open_console(stderr=to_output)
    begun = time.perf_counter()
    result = conditions.conditions(where) | {"dry": dry, "ceilings": vars(limits)}
    loudly = ", A DRY RUN ON THE CPU: IT MEASURES NOTHING" if dry else ""
    if _backend.current == "emulator":
        loudly += ", ON THE EMULATOR, WHOSE TIMES ARE NO SPEED"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    console.print(f"{result['device']}, {result['threads']} thread(s), {versions}{loudly}", highlight=False)
    console.print(
        "faster: torch.nn's time, or of estimators scikit-learn's, divided by the peer's, the median of the rounds, "
        "from lower to upper quartile; of small steps the ends of the median's 95 % interval. A tie if these enclose "
        "1. *: the fastest, or as fast."
    )
    left = float("inf") if seconds is None else seconds - conditions.age()
    run(result, todo, seconds=left, file=None if to_output else json_file, show=lambda row: show(row, console))
    if result["left out"]:
        console.print(f"left out, for want of time: {'; '.join(result['left out'])}")
    if result["bars"]:
        _show_bars(result["bars"], dry, console)
    console.print(f"{time.perf_counter() - begun:.0f} s on {result['device']}{loudly}", highlight=False)
    if to_output:
        typer.echo(dumps(result), nl=False)
    raise typer.Exit(any("error" in row for row in result["rows"]))


def _show_bars(bars: list[dict[str, Any]], dry: bool, console: Console) -> None:
    rows = []
    for bar in bars:
        measured = "" if bar["measured"] is None else f"{bar['measured']:.3g}"
        reached = {None: "unknown", True: "yes", False: "DRY RUN" if dry else "no"}[bar["reached"]]
        rows.append([bar["bar"], f"{bar['target']:.3g}", measured, reached])
    print_table(console, ["bar", "target", "measured", "reached"], rows, words=["bar"])
