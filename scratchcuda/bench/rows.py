"""What is measured: the rows of each part, and the bars for some of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from scratchcuda.bench import drop_in, estimators, fits, operations
from scratchcuda.bench.peers import COMPILED, GRAPH, SCRATCH, TORCH
from scratchcuda.compare import LARGE, WORKLOADS, Workload, network
from scratchcuda.profiler.ceilings import Ceilings
from scratchcuda.profiler.clocks import Clock
from scratchcuda.profiler.turns import ratio

#: Measurements of each peer, where no other number is asked for; a clock decides for itself.
ROUNDS = {"fits": 15, "steps": 15, "ops": 0, "drop-in": 1000, "scaling": 11, "estimators": 11}
PARTS = tuple(ROUNDS)

#: The workloads measured by default, in these dtypes; others in float64.
DTYPES = {
    "mlp": ("float64",),
    "digits": ("float32", "float64"),
    "slr": ("float64",),
    "mlp-1024": ("float32", "bfloat16"),
    "mlp-4096": ("float32", "bfloat16"),
}

#: Instead of :data:`LARGE`, in a dry run.
TINY = dict(zip(LARGE, (network((6, 5, 4)), network((5, 5, 5))), strict=True))

#: Not beside the largest network, where they take several times as long as all others.
SLOW = ("scikit-learn", "documents' code")

#: Where torch.compile takes part: with all its modes in whole fits, with the default one in others. It takes long.
COMPILED_ROWS = (("mlp", "float64"), ("digits", "float32"), ("mlp-1024", "float32"))
DEFAULT_MODE = next(iter(COMPILED))


@dataclass(frozen=True)
class Row:
    """A row to measure.

    Attributes:
        part, label: where it belongs, and its name.
        measure: returns what was measured.
        bars: for figures of the row, at least so much.
    """

    part: str
    label: str
    measure: Callable[[], dict[str, Any]]
    bars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How rows are measured.

    Attributes:
        clock: of the device.
        limits: of the device.
        workloads: of fits and steps, by name.
        dtypes: of fits and steps; none are :data:`DTYPES`.
        rounds: of each peer; None is :data:`ROUNDS`.
        peers: of fits, steps and scaling; none are each row's own choice.
        batch: what ``--batch`` has made the workloads' batch size, for the labels; None if it stayed their own.
        dry: tiny, in two rounds, without torch.compile.
    """

    clock: Clock
    limits: Ceilings
    workloads: Mapping[str, Workload]
    dtypes: Sequence[str] = ()
    rounds: int | None = None
    peers: Sequence[str] = ()
    batch: int | None = None
    dry: bool = False

    def rounds_of(self, part: str) -> int:
        return 2 if self.dry else self.rounds or ROUNDS[part]

    def train(
        self, part: str, work: Workload, dtype: str, compiled: Sequence[str], without: Sequence[str] = (), **how: Any
    ) -> dict[str, Any]:
        """Measure a fit or a step; if no peers are asked for, with these that compile, and without those others."""
        chosen = [peer for peer in fits.PEERS if peer not in COMPILED or (peer in compiled and not self.dry)]
        chosen = [peer for peer in chosen if peer not in without]
        if self.peers:
            chosen = list(dict.fromkeys((TORCH, *self.peers)))
        if self.dry:
            work = fits.resized(work, 100, 20, epochs=2, batch_size=40)  # of the digits all ten are among so many
        return fits.measure(work, dtype, self.clock.device, chosen, rounds=self.rounds_of(part), **how)


def rows(options: Options, parts: Sequence[str]) -> list[Row]:
    """Of these parts; first those with bars."""
    makers = {"fits": _fits, "steps": _steps, "ops": _ops, "drop-in": _drop_in, "scaling": _scaling}
    makers |= {"estimators": _estimators}
    return sorted((row for part in parts for row in makers[part](options)), key=lambda row: not row.bars)


def _fits(options: Options) -> Iterator[Row]:
    """Whole fits, without and with validation."""
    for name, work in options.workloads.items():
        for dtype in options.dtypes or DTYPES.get(name, ("float64",)):
            for validate in (False, True) if name not in LARGE else (False,):  # there it is one more forward
                modes = [DEFAULT_MODE] if validate else list(COMPILED)
                modes = modes if (name, dtype) in COMPILED_ROWS else []
                bars = {f"times as fast as {TORCH}": 10.0, f"times as fast as {GRAPH}": 1.0}
                has_bars = (name, dtype, validate, options.batch) == ("mlp", "float64", False, None)
                without = SLOW if name == "mlp-4096" else ()
                run = partial(options.train, "fits", work, dtype, modes, without, validate=validate)
                label = f"{name} {dtype} fit{' with validation' if validate else ''}{_batch(options)}"
                yield Row("fits", label, run, bars if has_bars and _is_gpu(options) else {})


def _steps(options: Options) -> Iterator[Row]:
    """An epoch of many full batches."""
    for name, work in options.workloads.items():
        for dtype in options.dtypes or DTYPES.get(name, ("float64",))[:1]:
            # After some 150 steps of the mlp its units wake, and rounding grows from 1e-15 to 1e-1 within 60 steps.
            count = 8 if name in LARGE and not _is_gpu(options) else 64
            many = fits.resized(work, count * work.batch_size, 1, epochs=1)
            modes = [DEFAULT_MODE] if (name, dtype) in COMPILED_ROWS else []
            without = SLOW if name == "mlp-4096" else ()
            run = partial(options.train, "steps", many, dtype, modes, without, kind="step")
            yield Row("steps", f"{name} {dtype} step{_batch(options)}", run)


def _ops(options: Options) -> Iterator[Row]:
    """All ops over a sweep of sizes, the largest in three dtypes."""
    for name, operation in operations.OPERATIONS.items():
        sizes = (operations.DRY_SIZES if options.dry else operations.SIZES)[operation.dims]
        if not _is_gpu(options):
            sizes = [shape for shape in sizes if torch.Size(shape).numel() <= 1 << 30]  # seconds a call
        product = operation.dims == "mkn"
        largest = {"of product": {"float32": 0.75, "float64": 0.5}} if product else {"of copy": {"float32": 0.85}}
        for shape, dtype in [*((s, "float32") for s in sizes), (sizes[-1], "float64"), (sizes[-1], "bfloat16")]:
            bars = {key: of[dtype] for key, of in largest.items() if dtype in of and shape == sizes[-1]}
            compiles = shape == sizes[-2:][0] and dtype == "float32" and not options.dry
            run = partial(operations.measure, name, shape, dtype, options.clock, options.limits, compiles)
            label = f"{name} {'x'.join(map(str, shape))} {dtype}"
            yield Row("ops", label, run, bars if _is_gpu(options) else {})


def _drop_in(options: Options) -> Iterator[Row]:
    sizes = [(w, b, a) for a in drop_in.ACTIVATIONS for w in drop_in.WIDTHS for b in drop_in.BATCHES]
    for width, batch, activation in sizes[: 2 if options.dry else None]:
        run = partial(drop_in.measure, width, batch, activation, options.clock.device, options.rounds_of("drop-in"))
        yield Row("drop-in", f"{width} wide, batch {batch}, {activation}", run)


def _scaling(options: Options) -> Iterator[Row]:
    """A step over width, depth and batch, each with the others held, and a fit over its epochs."""
    networks: dict[str, dict[int, tuple[tuple[int, ...], int, int]]]
    if options.dry:
        networks = {axis: {size: ((size, 2, size), 8, 2) for size in (2, 3)} for axis in ("width", "depth", "batch")}
        return _along_axes(options, networks, (1, 2))
    widths = (16, 64, 256, 1024, *([4096] if _is_gpu(options) else []))
    networks = {
        "width": {width: ((width,) * 4, 64, 32 if width < 1024 else 8) for width in widths},
        "depth": {depth: ((64,) * (depth + 1), 64, 32) for depth in (2, 4, 8, 16)},
        "batch": {batch: ((64, 128, 64, 10), batch, 32 if batch < 4096 else 8) for batch in (1, 8, 64, 512, 4096)},
    }
    return _along_axes(options, networks, (1, 4, 16, 64))


def _along_axes(
    options: Options, networks: Mapping[str, Mapping[int, tuple[tuple[int, ...], int, int]]], epochs: Sequence[int]
) -> Iterator[Row]:
    """Rows of a step for each size along each axis, given as layers, samples and steps; then of fits over epochs."""
    for axis, sizes in networks.items():
        for i, (size, (shape, batch, count)) in enumerate(sizes.items()):
            work = network(shape, "relu", batch, count)
            modes = [DEFAULT_MODE] if i in (1, len(sizes) - 1) else []
            run = partial(_along, axis, size, partial(options.train, "scaling", work, "float32", modes, kind="step"))
            yield Row("scaling", f"{axis} {size}", run)
    for count in epochs:
        work = replace(WORKLOADS["digits"], epochs=count)
        run = partial(_along, "epochs", count, partial(options.train, "scaling", work, "float32", []))
        yield Row("scaling", f"epochs {count}", run)


def _estimators(options: Options) -> Iterator[Row]:
    for solver in estimators.SOLVERS:
        for dtype in ("float64", "float32"):
            epochs, rounds = 2 if options.dry else 20, options.rounds_of("estimators")
            run = partial(estimators.measure, solver, dtype, epochs, options.clock.device, rounds)
            yield Row("estimators", f"MLPClassifier {solver} {dtype}", run)


def _along(axis: str, size: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return measure() | {"axis": axis, "size": size}


def _batch(options: Options) -> str:
    return f", batch {options.batch}" if options.batch else ""


def _is_gpu(options: Options) -> bool:
    """Or acts as if: the dry run goes through all that a GPU's does."""
    return options.clock.device.type == "cuda" or options.dry


def figure(row: Mapping[str, Any], key: str) -> float | None:
    """What a bar is for: a figure of the row, or how many times as fast as a peer scratchcuda is, as the median of the
    rounds; None where it was not measured."""
    if key in row:
        return row[key]
    peers, other = row.get("peers", {}), key.removeprefix("times as fast as ")
    if not all(peers.get(who, {}).get("agrees") for who in (SCRATCH, other)):
        return None
    return ratio(peers[other]["samples"], peers[SCRATCH]["samples"])["quartiles"][1]


def reached(todo: Sequence[Row], done: Mapping[str, Mapping[str, Any]], dry: bool) -> list[dict[str, Any]]:
    """Each bar, and whether it was reached: None where it was not measured.

    Args:
        todo: the rows.
        done: what was measured, by label.
        dry: then none is reached.
    """
    found = []
    for row in todo:
        for key, target in row.bars.items():
            measured = figure(done.get(row.label, {}), key)
            verdict = None if measured is None else measured >= target and not dry
            found.append({"bar": f"{row.label}: {key}", "target": target, "measured": measured, "reached": verdict})
    return found
