"""The plots of a profile: its roofline, and where the step's time goes."""

from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import Bbox

from scratchcuda.profiler.findings import Findings, Row
from scratchcuda.profiler.tables import engineering, most, places

#: By phase: marker, hatch and shade, so that each is told apart in black and white.
PHASES = {
    "batch": ("v", "..", "0.9"),
    "forward": ("o", "", "tab:blue"),
    "loss": ("D", "xx", "0.8"),
    "backward": ("s", "//", "tab:orange"),
    "update": ("^", "\\\\", "tab:green"),
    "step": ("P", "++", "0.7"),
}
#: Bars at most; the least expensive others are one bar.
BARS = 24
#: Ops of the roofline that have numbers.
LABELS = 15
#: Points of the roofline that are nearer than this (pixels) share a label, which stands at one of these places around
#: the first (offset in points, and the side of the text that is next to the point).
NEAR = 16
SIDES = {(1.0, 0.0): "left", (-1.0, 0.0): "right", (0.0, 1.0): "center", (0.0, -1.0): "center"}
SIDES |= {(0.7, 0.7): "left", (-0.7, 0.7): "right", (0.7, -0.7): "left", (-0.7, -0.7): "right"}
PLACES = [((d * x, d * y), side) for d in (9, 20, 32, 46, 62) for (x, y), side in SIDES.items()]


def png(figure: Figure) -> bytes:
    buffer = BytesIO()
    with mpl.rc_context({"hatch.linewidth": 0.6, "text.parse_math": False}):
        figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def roofline(profile: Findings) -> Figure:
    """Rate against intensity of each op, under the measured ceilings; the most expensive have their rows' numbers."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    ceilings = profile.ceilings
    points = [(row.flops / row.bytes, row.rate, i, row.phase) for i, row in enumerate(profile.rows, 1) if row.flops]
    numbers = [i for _, _, i, _ in points]
    if len(numbers) > LABELS:
        costly = most(profile.rows, LABELS, lambda row: row.seconds if row.flops else -1)
        numbers = [i for i, row in costly if row.flops]
    dtypes = sorted({row.dtype for row in profile.rows if row.dtype in ceilings.flops})
    ridge = max(ceilings.flops[dtype] for dtype in dtypes) / ceilings.bandwidth
    left = min([0.05, *(x / 2 for x, *_ in points)])
    right = max([4 * ridge, *(2 * x for x, *_ in points)])
    for dtype, line in zip(dtypes, ("-", "--", "-.", ":"), strict=False):
        rate = ceilings.flops[dtype]
        bend = rate / ceilings.bandwidth
        label = f"copy {EngFormatter('B/s', places=1)(ceilings.bandwidth)}, "
        label += f"products in {dtype} {EngFormatter('FLOP/s', places=0)(rate)}"
        axes.plot([left, bend, right], [left * ceilings.bandwidth, rate, rate], "k", ls=line, lw=1.5, label=label)
    for phase, (marker, _, color) in PHASES.items():
        if not any(kind == phase for *_, kind in points):
            continue
        # The numbered ones last, above the others, which are smaller.
        for is_numbered, look in ((False, {"ms": 4, "alpha": 0.5}), (True, {"ms": 8, "label": phase})):
            of = [(x, y) for x, y, i, kind in points if kind == phase and (i in numbers) == is_numbered]
            axes.plot([x for x, _ in of], [y for _, y in of], marker, color=color, mec="black", ls="", **look)
    axes.set(xscale="log", yscale="log", xlabel="intensity, FLOP / byte", ylabel="rate, FLOP/s", xlim=(left, right))
    axes.yaxis.set_major_formatter(EngFormatter())
    whose = "" if len(points) == len(numbers) else f"; numbers of the {len(numbers)} that take longest"
    axes.set_title(f"{profile.title}\nroofline, cold, {profile.conditions['device']}{whose}", fontsize=11)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.draw_without_rendering()  # so that there are pixels to compare
    _label(axes, [(x, y, i) for x, y, i, _ in points], numbers)
    return figure


def _label(axes: Axes, points: list[tuple[float, float, int]], numbers: Sequence[int]) -> None:
    """Numbers beside their points; points that lie on one another share a label, and no label covers another one."""
    at = {i: (x, y) for x, y, i in points}
    pixels = {i: axes.transData.transform(xy) for i, xy in at.items()}
    groups: list[list[int]] = []
    for i in numbers:
        x, y = pixels[i]
        near = (g for g in groups if max(abs(pixels[g[0]][0] - x), abs(pixels[g[0]][1] - y)) < NEAR)
        if (group := next(near, None)) is not None:
            group.append(i)
        else:
            groups.append([i])
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels.values()]
    for line in axes.lines:
        if line.get_linestyle() != "None":  # the ceilings: some hundred dots along them
            ends = axes.transData.transform(line.get_xydata())
            for (x1, y1), (x2, y2) in pairwise(ends):
                taken += [
                    Bbox.from_bounds(x1 + t * (x2 - x1), y1 + t * (y2 - y1), 1, 1) for t in np.linspace(0, 1, 150)
                ]
    inside = axes.get_window_extent()
    for group in groups:
        place: dict[str, Any] = {
            "text": _listed(group),
            "xy": at[group[0]],
            "textcoords": "offset points",
            "va": "center",
            "fontsize": 8,
        }
        crowds: list[tuple[int, Bbox]] = []
        for offset, side in PLACES:
            text = axes.annotate(xytext=offset, ha=side, **place)
            box = text.get_window_extent()
            text.remove()
            is_inside = all(map(inside.contains, (box.x0, box.x1), (box.y0, box.y1)))
            crowds.append((box.count_overlaps(taken) + (not is_inside), box))
            if crowds[-1][0] == 0:
                break
        best = min(range(len(crowds)), key=lambda i: crowds[i][0])
        offset, side = PLACES[best]
        axes.annotate(xytext=offset, ha=side, arrowprops={"arrowstyle": "-", "lw": 0.5, "shrinkB": 4}, **place)
        taken.append(crowds[best][1])


def _listed(numbers: list[int]) -> str:
    """Six in a line."""
    lines = [sorted(numbers)[i : i + 6] for i in range(0, len(numbers), 6)]
    return ",\n".join(", ".join(map(str, line)) for line in lines)


def bars(profile: Findings) -> Figure:
    """The step's time in order: by op, or, of many, by layer and phase; of too many the most expensive ones."""
    lines = [
        (f"{i}  {row.layer or row.phase}: {row.op}{_times(row)}", row.seconds, row.phase)
        for i, row in enumerate(profile.rows, 1)
    ]
    if len(lines) > BARS:
        lines = [
            (f"{layer or phase}: {len(rows)} op{'s' * (len(rows) > 1)}", sum(row.seconds for row in rows), phase)
            for (layer, phase), rows in places(profile.rows).items()
        ]
    least = sorted((seconds for _, seconds, _ in lines), reverse=True)[:BARS][-1]
    rest = [seconds for _, seconds, _ in lines if seconds < least]
    lines = [line for line in lines if line[1] >= least]
    if rest:
        lines.append((f"the {len(rest)} others", sum(rest), ""))
    figure = Figure(figsize=(9, 1.6 + 0.27 * len(lines)), layout="constrained")
    axes = figure.subplots()
    seen = set()
    for place, (_, seconds, phase) in enumerate(lines):
        _, hatch, color = PHASES.get(phase, ("", "", "white"))
        label = None if phase in seen or not phase else phase
        seen.add(phase)
        axes.barh(place, seconds, color=color, hatch=hatch, edgecolor="black", lw=0.7, label=label)
        text = engineering(seconds, "s")
        axes.annotate(text, (seconds, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(lines)), [text for text, *_ in lines], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.13, y=0.01)
    axes.set_xlabel("time of a step, warm")
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.set_title(f"{profile.title}\n{profile.path}, {profile.conditions['device']}", fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _times(row: Row) -> str:
    return f", {row.calls} times" if row.calls > 1 else ""
