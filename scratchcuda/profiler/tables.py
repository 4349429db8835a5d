"""The tables of a profile, as text: for the terminal and for the HTML report alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scratchcuda.profiler.findings import Findings, Row, Step
from scratchcuda.profiler.turns import is_tie

#: What the most expensive ops are chosen by: of all calls in a step.
SORTS: dict[str, Callable[[Row], float]] = {
    "time": lambda row: row.seconds,
    "cold": lambda row: row.calls * row.cold[1],
    "flop": lambda row: row.calls * row.flops,
    "bytes": lambda row: row.calls * row.bytes,
    "calls": lambda row: row.calls,
}

#: Rows of a profile, each with its number.
Rows = Sequence[tuple[int, Row]]


@dataclass
class Text:
    """One table: rows of text under a header, what its columns mean, and which of them hold words."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str
    words: tuple[str, ...]


def tables(profile: Findings, top: int | None = None, sort: str = "time") -> list[Text]:
    """All of it in the order of the step; or of layers and ops the most expensive ones, by one of :data:`SORTS`."""
    rows, groups, rest, note = list(enumerate(profile.rows, 1)), places(profile.rows), [], ""
    if top is not None:
        key = SORTS[sort]
        rows = most(profile.rows, top, key)
        note = f" The most expensive of {len(profile.rows)} ops, by {sort}; what several layers do alike is one row, "
        note += "with the number of the first. profile.json and report.html have all, in the order of the step."
        hidden = sorted(groups, key=lambda place: -sum(map(key, groups[place])))[top:]
        for place in hidden if len(hidden) > 1 else ():  # one takes no more room than its name
            rest += groups.pop(place)
    found = [_layers(profile, groups, rest), _times(profile, rows, note), _work(profile, rows), _steps(profile)]
    return [*found, _kernels(rows)] if any(row.kernels for _, row in rows) else found


def most(rows: Sequence[Row], top: int, key: Callable[[Row], float]) -> list[tuple[int, Row]]:
    """The most expensive ops by this key, with their numbers.

    What several layers do alike has been measured once, and is one, with the number of the first.
    """
    found: dict[tuple[object, ...], tuple[int, list[Row]]] = {}
    for i, row in enumerate(rows, 1):
        found.setdefault((row.phase, row.op, str(row.shapes), *row.warm, *row.cold), (i, []))[1].append(row)
    joined = []
    for i, (first, *others) in found.values():
        layer = f"{first.layer} and {len(others)} more".strip() if others else first.layer
        joined.append((i, replace(first, layer=layer, calls=first.calls + sum(row.calls for row in others))))
    return sorted(joined, key=lambda numbered: -key(numbered[1]))[:top]


def places(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Ops by layer and phase, in the order of the step."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.layer, row.phase), []).append(row)
    return found


def engineering(value: float, unit: str) -> str:
    """Three digits and a prefix: 1.53 GB."""
    from matplotlib.ticker import EngFormatter  # no command has to wait for it to begin

    return EngFormatter(unit)(float(f"{value:.3g}"))


def digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def spread(quartiles: list[float], scale: float) -> list[str]:
    """The median, and the quartiles around it."""
    low, median, high = (digits(scale * q) for q in quartiles)
    return [median, f"{low} to {high}"]


def ratio(quartiles: list[float] | None) -> str:
    """The median; or a tie, where the quartiles lie on both sides of 1."""
    if quartiles is None:
        return ""
    return "a tie" if is_tie(quartiles) else f"{quartiles[1]:.2f}"


def _layers(profile: Findings, groups: dict[tuple[str, str], list[Row]], rest: list[Row]) -> Text:
    lines = []
    others = {(f"{len(rest)} other ops", ""): rest} if rest else {}
    for (layer, phase), rows in (groups | others).items():
        seconds = sum(row.seconds for row in rows)
        calls = str(sum(row.calls for row in rows))
        lines.append([layer, phase, calls, digits(1e6 * seconds), f"{seconds / profile.in_ops:.1%}"])
    note = "Sums of the ops' warm times in a step, by layer and phase; what belongs to no layer has no name."
    return Text("Layers", ["layer", "phase", "calls", "warm, µs", "share"], lines, note, ("layer", "phase"))


def _times(profile: Findings, numbered: Rows, more: str) -> Text:
    on_gpu = profile.rows[0].host is not None
    header = ["", "phase", "layer", "op", "calls", "share", "warm, µs", "warm quartiles", "cold, µs", "cold quartiles"]
    header += ["host, µs"] * on_gpu
    rows = []
    for i, row in numbered:
        share = row.seconds / profile.in_ops
        times = [f"{share:.1%}", *spread(row.warm, 1e6), *spread(row.cold, 1e6)]
        host = [] if row.host is None else [digits(1e6 * row.host[1])]
        rows.append([str(i), row.phase, row.layer, row.op, str(row.calls), *times, *host])
    note = "A call by itself, medians: warm, its data in a cache; cold, after a write that fills all caches; share, of "
    note += "the warm time of all ops of the step."
    note += " Host: to enqueue it, apart from the device." * on_gpu
    return Text("Times", header, rows, note + more, ("phase", "layer", "op"))


def _work(profile: Findings, numbered: Rows) -> Text:
    ours = any(row.eager for _, row in numbered)
    header = ["", "op", "tensors", "FLOP", "bytes", "FLOP/s", "B/s", "of copy", "of products", "of floor", "limited by"]
    header += ["error", *(["eager / this", "compile / this"] if ours else [])]
    rows = []
    for i, row in numbered:
        tensors = ", ".join("x".join(map(str, shape)) or "1" for shape in row.shapes)
        of_copy, of_products = profile.shares(row)
        texts = [engineering(row.flops, ""), engineering(row.bytes, "B"), engineering(row.rate, "")]
        texts += [engineering(row.bandwidth, "B"), f"{of_copy:.1%}"]
        texts += ["" if of_products is None else f"{of_products:.1%}", f"{row.of_floor:.0%}", row.limit]
        texts += ["" if row.error is None else f"{row.error:.0e}"]
        rows.append([str(i), row.op, tensors, *texts, *([ratio(row.eager), ratio(row.compiled)] if ours else [])])
    note = "The least that each call has to do; its rates and shares, of the cold time: of the bandwidth of a copy, of "
    note += "the rate of a large product by torch, and of the floor, the least time by these ceilings and the time of "
    note += "the smallest call, the largest of which limits it. Error: relative, against float64."
    return Text("Work", header, rows, note, ("op", "tensors", "limited by"))


def _steps(profile: Findings) -> Text:
    first = next(iter(profile.steps))
    rows = [_step(name, step, name == first) for name, step in profile.steps.items()]
    inside, whole = profile.in_ops, profile.steps["this"].seconds[1]
    note = (
        f"Whole steps, in turns. Ratio: the first one's time divided by the others'. Of {1e6 * whole:.0f} µs, the ops "
    )
    note += f"above take {1e6 * inside:.0f} µs by themselves, warm; "
    if whole > inside:
        note += f"the other {1e6 * (whole - inside):.0f} µs lie between them."
    else:
        note += "within the step they run faster than by themselves, so nothing is lost between them."
    header = ["", "path", "step, µs", "step quartiles", "ratio", "ratio quartiles", "losses differ by"]
    return Text("Steps", header, rows, note, ("", "path"))


def _step(name: str, step: Step, is_first: bool) -> list[str]:
    if is_first:
        ratios = ["1", ""]
    else:
        ratios = ["none: other losses", ""] if step.ratio is None else [ratio(step.ratio), spread(step.ratio, 1)[1]]
    return [
        name,
        step.path,
        *spread(step.seconds, 1e6),
        *ratios,
        "" if step.difference is None else f"{step.difference:.0e}",
    ]


def _kernels(numbered: Rows) -> Text:
    rows = []
    for i, row in numbered:
        for kernel in row.kernels:
            sizes = ["x".join(map(str, size)) for size in (kernel.grid, kernel.block)]
            registers = "" if kernel.registers is None else str(kernel.registers)
            occupancy = "" if kernel.occupancy is None else f"{kernel.occupancy:.0%}"
            name = kernel.name if len(kernel.name) <= 90 else f"{kernel.name[:87]}..."
            rows.append([str(i), name, *sizes, registers, str(kernel.shared_bytes), occupancy])
    header = ["", "kernel", "grid", "block", "registers", "shared bytes", "occupancy"]
    note = "Registers of a thread, shared memory of a block, share of a multiprocessor's threads that can run together."
    return Text("Kernels", header, rows, note, ("kernel",))
