"""The tables of a profile, as text: for the terminal and for the HTML report alike."""

from dataclasses import dataclass

from scratchcuda.profiler.profile import Profile
from scratchcuda.profiler.race import Step
from scratchcuda.profiler.turns import is_tie


@dataclass
class Text:
    """One table: rows of text under a header, and what its columns mean."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str


def tables(profile: Profile) -> list[Text]:
    found = [_times(profile), _work(profile), _steps(profile)]
    return [*found, _kernels(profile)] if any(row.kernels for row in profile.rows) else found


def engineering(value: float, unit: str) -> str:
    """Three digits and a prefix: 1.53 GB."""
    from matplotlib.ticker import EngFormatter  # no command has to wait for it to begin

    return EngFormatter(unit)(float(f"{value:.3g}"))


def spread(quartiles: list[float], scale: float) -> list[str]:
    """The median, and the quartiles around it."""
    low, median, high = (f"{scale * q:.3g}" if scale * q < 1000 else f"{scale * q:.0f}" for q in quartiles)
    return [median, f"{low} to {high}"]


def ratio(quartiles: list[float] | None) -> str:
    """The median; or a tie, where the quartiles lie on both sides of 1."""
    if quartiles is None:
        return ""
    return "a tie" if is_tie(quartiles) else f"{quartiles[1]:.2f}"


def _times(profile: Profile) -> Text:
    on_gpu = profile.rows[0].host is not None
    header = ["", "phase", "layer", "op", "calls", "warm, µs", "quartiles", "cold, µs", "quartiles", "share"]
    header += ["host, µs"] * on_gpu
    rows = []
    for i, row in enumerate(profile.rows, 1):
        share = row.calls * row.warm[1] / profile.in_ops
        times = [*spread(row.warm, 1e6), *spread(row.cold, 1e6), f"{share:.1%}"]
        host = [] if row.host is None else [f"{1e6 * row.host[1]:.3g}"]
        rows.append([str(i), row.phase, row.layer, row.op, str(row.calls), *times, *host])
    note = "A call by itself, medians: warm, its data in a cache; cold, after a write that fills all caches; share, of "
    note += "the warm time of all ops of the step."
    return Text("Times", header, rows, note + " Host: to enqueue it, apart from the device." * on_gpu)


def _work(profile: Profile) -> Text:
    ours = any(row.eager for row in profile.rows)
    header = ["", "op", "tensors", "FLOP", "bytes", "FLOP/s", "B/s", "of copy", "of products", "of floor", "limited by"]
    header += ["error", *(["eager / this", "compile / this"] if ours else [])]
    rows = []
    for i, row in enumerate(profile.rows, 1):
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
    return Text("Work", header, rows, note)


def _steps(profile: Profile) -> Text:
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
    return Text("Steps", ["", "path", "step, µs", "quartiles", "ratio", "quartiles", "losses differ by"], rows, note)


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


def _kernels(profile: Profile) -> Text:
    rows = []
    for i, row in enumerate(profile.rows, 1):
        for kernel in row.kernels:
            sizes = ["x".join(map(str, size)) for size in (kernel.grid, kernel.block)]
            registers = "" if kernel.registers is None else str(kernel.registers)
            occupancy = "" if kernel.occupancy is None else f"{kernel.occupancy:.0%}"
            name = kernel.name if len(kernel.name) <= 90 else f"{kernel.name[:87]}..."
            rows.append([str(i), name, *sizes, registers, str(kernel.shared_bytes), occupancy])
    header = ["", "kernel", "grid", "block", "registers", "shared bytes", "occupancy"]
    note = "Registers of a thread, shared memory of a block, share of a multiprocessor's threads that can run together."
    return Text("Kernels", header, rows, note)
