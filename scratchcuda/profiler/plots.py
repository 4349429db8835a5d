"""The plots of a profile: its roofline, and where the step's time goes."""

from io import BytesIO

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from scratchcuda.profiler.measure import Row
from scratchcuda.profiler.profile import Profile

#: By phase: marker, hatch and shade, so that each is told apart in black and white.
PHASES = {
    "batch": ("v", "..", "0.9"),
    "forward": ("o", "", "tab:blue"),
    "loss": ("D", "xx", "0.8"),
    "backward": ("s", "//", "tab:orange"),
    "update": ("^", "\\\\", "tab:green"),
}
#: Bars of the most expensive rows; the others are one bar.
BARS = 24
#: Points of the roofline that are nearer than this (decades) share a label.
NEAR = 0.12


def png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def roofline(profile: Profile) -> Figure:
    """Rate against intensity of each op, under the measured ceilings; numbers are the rows of the tables."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    ceilings = profile.ceilings
    points = [(row.flops / row.bytes, row.rate, i, row.phase) for i, row in enumerate(profile.rows, 1) if row.flops]
    dtypes = sorted({row.dtype for row in profile.rows if row.dtype in ceilings.flops})
    ridge = max(ceilings.flops[dtype] for dtype in dtypes) / ceilings.bandwidth
    left = min([0.05, *(x / 2 for x, *_ in points)])
    right = max([4 * ridge, *(2 * x for x, *_ in points)])
    for dtype in dtypes:
        rate = ceilings.flops[dtype]
        bend = rate / ceilings.bandwidth
        axes.plot([left, bend, right], [left * ceilings.bandwidth, rate, rate], "k-", lw=1.5)
        label = f"products, {dtype}: {EngFormatter('FLOP/s', places=0)(rate)}"
        axes.annotate(label, (right, rate), (-4, 4), textcoords="offset points", ha="right", fontsize=9)
    copy = f"copy: {EngFormatter('B/s', places=1)(ceilings.bandwidth)}"
    axes.annotate(copy, (left, left * ceilings.bandwidth), (6, 14), textcoords="offset points", fontsize=9)
    for phase, (marker, _, color) in PHASES.items():
        of = [(x, y) for x, y, _, kind in points if kind == phase]
        if of:
            axes.plot(*zip(*of, strict=True), marker, color=color, mec="black", ms=8, ls="", label=phase)
    _label(axes, [(x, y, i) for x, y, i, _ in points])
    axes.set(xscale="log", yscale="log", xlabel="intensity, FLOP / byte", ylabel="rate, FLOP/s", xlim=(left, right))
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.set_title(f"{profile.title}\nroofline, cold, {profile.facts['device']}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _label(axes: Axes, points: list[tuple[float, float, int]]) -> None:
    """Numbers beside the points; points that lie on one another share a label, and no label covers another."""
    from math import log10

    groups: list[tuple[float, float, list[int]]] = []
    for x, y, i in points:
        near = (g for g in groups if abs(log10(g[0] / x)) < NEAR and abs(log10(g[1] / y)) < NEAR)
        group = next(near, None)
        if group is None:
            groups.append((x, y, [i]))
        else:
            group[2].append(i)
    for x, y, numbers in groups:
        axes.annotate(_listed(numbers), (x, y), (7, -3), textcoords="offset points", fontsize=8)


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return shown if len(numbers) <= 6 else f"{shown}, ..."


def bars(profile: Profile) -> Figure:
    """The step's time by op: the most expensive ones, in the order of the step."""
    by_time = sorted(profile.rows, key=_seconds, reverse=True)
    chosen = [(i, row) for i, row in enumerate(profile.rows, 1) if any(row is other for other in by_time[:BARS])]
    rest = by_time[BARS:]
    lines = [(f"{i}  {row.layer or row.phase}: {row.op}{_times(row)}", _seconds(row), row.phase) for i, row in chosen]
    if rest:
        lines.append((f"the {len(rest)} others", sum(map(_seconds, rest)), ""))
    figure = Figure(figsize=(9, 1.6 + 0.27 * len(lines)), layout="constrained")
    axes = figure.subplots()
    seen = set()
    for place, (_, seconds, phase) in enumerate(lines):
        _, hatch, color = PHASES.get(phase, ("", "", "white"))
        label = None if phase in seen or not phase else phase
        seen.add(phase)
        axes.barh(place, 1e6 * seconds, color=color, hatch=hatch, edgecolor="black", lw=0.7, label=label)
        axes.annotate(
            f"{1e6 * seconds:.3g}", (1e6 * seconds, place), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(lines)), [text for text, *_ in lines], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.set_xlabel("time of a step, warm, µs")
    axes.set_title(f"{profile.title}\n{profile.path}, {profile.facts['device']}", fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _seconds(row: Row) -> float:
    return row.calls * row.warm[1]


def _times(row: Row) -> str:
    return f", {row.calls} times" if row.calls > 1 else ""


mpl.rcParams["hatch.linewidth"] = 0.6
