"""Plots of what scratchcuda bench has measured, readable without colours."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt  # the backend is chosen first
from matplotlib.ticker import LogLocator

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


def ratios(rows: Sequence[Mapping[str, Any]], file: Path, beneath: str) -> None:
    """A panel for each row: how many times faster than torch.nn each peer is, with the quartiles as whiskers."""
    most, lines = max(len(row["peers"]) for row in rows), -(-len(rows) // 2)
    figure, panels = plt.subplots(
        lines, 2, figsize=(10, 0.8 + lines * (0.6 + 0.17 * most)), sharex=True, layout="constrained"
    )
    for row, panel in itertools.zip_longest(rows, panels.flat):
        if row is None:
            panel.axis("off")
            continue
        of = {peer: row["peers"][peer]["ratio"]["quartiles"] for peer in row["peers"] if _is_right(row, peer)}
        of = {peer: quartiles for peer, quartiles in of.items() if peer != "torch.nn"}
        shades = ["black" if peer in row["fastest"] else "darkgray" for peer in of]
        medians = [median for _, median, _ in of.values()]
        whiskers = [[m - low for low, m, _ in of.values()], [high - m for _, m, high in of.values()]]
        # Bars grow from 1, faster to the right, slower to the left.
        error = {"xerr": whiskers, "error_kw": {"lw": 1, "capsize": 2, "ecolor": "tab:red"}}
        panel.barh(list(of), [median - 1 for median in medians], left=1, color=shades, **error)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.axvline(1, color="black", lw=0.8)
        panel.invert_yaxis()
        panel.tick_params(labelsize=8, labelbottom=True)
        panel.set_title(row["label"], fontsize=9, loc="left")
    text = "times as fast as torch.nn, median and quartiles; black: the fastest, and who ties with it"
    _save(figure, file, f"{text}\n{beneath}")


def _is_right(row: Mapping[str, Any], peer: str) -> bool:
    return bool(row["peers"].get(peer, {}).get("agrees"))


def _save(figure: Any, file: Path, beneath: str) -> None:
    figure.supxlabel(beneath, fontsize=7)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of all peers, in the order in which they come."""
    return list(dict.fromkeys(peer for row in rows for peer in row.get("peers", {})))
