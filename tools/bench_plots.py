"""Plots of what scratchcuda bench has measured, readable without colours."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt  # the backend is chosen first

#: One look for each peer in all plots: colour, marker, line.
COLOURS = ("black", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*", "h", "d", "p", "8")
LINES = ("-", "--", ":", "-.")
UNITS = {
    "width": "features of each of three layers",
    "depth": "layers of 64 features",
    "batch": "samples of a step",
    "epochs": "epochs of a fit",
}


def looks(peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        peer: {"color": COLOURS[i % 9], "marker": MARKERS[i % 14], "ls": LINES[i % 4], "ms": 5, "lw": 1.3}
        for i, peer in enumerate(peers)
    }


def over_size(axis: str, rows: Sequence[Mapping[str, Any]], peers: Sequence[str], file: Path, beneath: str) -> None:
    """Time against size, for each peer, both logarithmic.

    Args:
        axis: a key of :data:`UNITS`.
        rows: along it.
        peers: all of the results, which decide the looks.
        file: the PNG.
        beneath: conditions.
    """
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    for peer, look in looks(peers).items():
        points = [(row["size"], 1e3 * row["peers"][peer]["seconds"][1]) for row in rows if _is_right(row, peer)]
        if points:
            axes.plot(*zip(*points, strict=True), label=peer, **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = [row["size"] for row in rows]
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel(UNITS[axis])
    axes.set_ylabel(f"milliseconds of a {rows[0]['kind']}, median")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, file, beneath)


def ratios(rows: Sequence[Mapping[str, Any]], peers: Sequence[str], file: Path, beneath: str) -> None:
    """Bars of how many times faster than torch.nn each peer's fits are, with the quartiles as whiskers."""
    shown = [peer for peer in peers if peer != "torch.nn" and any(_is_right(row, peer) for row in rows)]
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.17 * len(shown) * len(rows)), layout="constrained")
    thick = 0.85 / len(shown)
    for i, peer in enumerate(shown):
        of = [(j, row["peers"][peer]["ratio"]["quartiles"]) for j, row in enumerate(rows) if _is_right(row, peer)]
        places = [j + (i - (len(shown) - 1) / 2) * thick for j, _ in of]
        low, median, high = zip(*(quartiles for _, quartiles in of), strict=True)
        whiskers = [
            [m - lo for m, lo in zip(median, low, strict=True)],
            [h - m for h, m in zip(high, median, strict=True)],
        ]
        hatch = ("", "//", "..", "xx", "--", "\\\\", "++", "oo", "||", "**")[i % 10]
        style = {"color": COLOURS[(i + 1) % 9], "edgecolor": "black", "lw": 0.4, "hatch": hatch}
        axes.barh(places, median, thick, xerr=whiskers, label=peer, error_kw={"lw": 0.8, "capsize": 1.5}, **style)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times as fast as torch.nn, median and quartiles")
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    _save(figure, file, beneath)


def _is_right(row: Mapping[str, Any], peer: str) -> bool:
    return bool(row["peers"].get(peer, {}).get("agrees"))


def _save(figure: Any, file: Path, beneath: str) -> None:
    figure.supxlabel(beneath, fontsize=7)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of all peers, in the order in which they come."""
    return list(dict.fromkeys(peer for row in rows for peer in row.get("peers", {})))
