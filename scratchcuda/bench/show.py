"""Prints what was measured."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from scratchcuda.profiler.tables import engineering
from scratchcuda.profiler.turns import is_tie
from scratchcuda.tables import print_table


def show(row: Mapping[str, Any], console: Console) -> None:
    """A table of a row's peers, or a line for a single op."""
    if "error" in row:
        console.print(f"[bold]{row['label']}[/bold]: {row['error']}", highlight=False)
    elif row["part"] == "ops":
        console.print(_line(row), highlight=False)
    else:
        _show_peers(row, console)
    for peer, note in row.get("notes", {}).items():
        console.print(f"  {peer}: {note}", highlight=False)


def times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def verdict(peer: Mapping[str, Any], spread: str) -> str:
    """How many times faster a peer is, or why that is not said."""
    if not peer["agrees"]:
        return "other results"
    ratio = peer["ratio"][spread]
    if ratio == [1, 1, 1]:  # torch.nn itself
        return "1"
    return "a tie" if is_tie(ratio) else times(ratio[1])


def duration(seconds: float) -> str:
    return engineering(seconds, "s")


def _show_peers(row: Mapping[str, Any], console: Console) -> None:
    spread = row["spread"]
    header = ["peer", "median", "quartiles", "faster", "from", "difference"]
    uses_memory = any("first use" in peer for peer in row["peers"].values())
    lines = []
    for name, peer in row["peers"].items():
        low, median, high = (duration(value) for value in peer["seconds"])
        ends = " to ".join(times(peer["ratio"][spread][i]) for i in (0, 2)) if peer["agrees"] else ""
        cells = [f"{name}*" if name in row["fastest"] else name, median, f"{low} to {high}"]
        cells += [verdict(peer, spread), ends, f"{peer['difference']:.0e}"]
        if uses_memory:
            peak = peer["peak bytes"]
            cells += [
                duration(peer["first use"]),
                "" if peak is None else f"{peak / 2**20:.1f}",
                f"{peer['cores']:.1f}",
            ]
        lines.append(cells)
    header += ["first use", "peak MiB", "cores"] * uses_memory
    print_table(console, header, lines, words=["peer"], title=row["label"])


def _line(row: Mapping[str, Any]) -> str:
    found = []
    for name, peer in row["peers"].items():
        if peer["agrees"]:
            cold = duration(peer["cold"][1])
            found.append(f"{name} {duration(peer['seconds'][1])}, cold {cold} ({verdict(peer, row['spread'])})")
        else:
            found.append(f"{name} differs by {peer['difference']:.0e}")
    text = f"{row['label']}: {'; '.join(found)}"
    if "of copy" in row:
        text += f"; {row['of copy']:.0%} of a copy, {row['of product']:.0%} of a product, "
        text += f"{row['of limit']:.0%} of what {row['limit']} allows"
    return text
