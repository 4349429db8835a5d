"""Writes what scratchcuda bench and profile have measured into README.md, docs/benchmarks.md and docs/drop-in.md.

    python tools/bench_report.py [--results benchmarks/results] [--root .]

All figures come from the JSON files in that folder, one for each device, and profile.json for the README's profile; no
figure is typed by hand. The plots go into docs.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_plots
from marks import fill

from scratchcuda.bench.show import duration, times, verdict
from scratchcuda.conditions import sentence
from scratchcuda.profiler import Profile, plots
from scratchcuda.profiler.tables import engineering
from scratchcuda.profiler.turns import is_tie

Row = Mapping[str, Any]
Result = Mapping[str, Any]
OURS, TORCH = "scratchcuda", "torch.nn"

#: Columns of the README's table.
COLUMNS = (OURS, "scratchcuda.nn, converted", "torch.compile", "JAX, jit of the fit", "JAX, jit of the step")
COLUMNS += ("scikit-learn", "documents' code")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown; the first column is text, the others are figures."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def of_part(result: Result, part: str) -> list[Row]:
    return [row for row in result["rows"] if row["part"] == part and "peers" in row]


def conditions(result: Result) -> str:
    """The device, what runs there, and how much the times vary, in a sentence."""
    spreads = [(q[2] - q[0]) / q[1] for row in of_part(result, "fits") if (q := row["peers"][TORCH]["seconds"])]
    noise = (
        f"; half of torch.nn's own times lie within {max(spreads):.0%}, in the median row within " if spreads else ""
    )
    noise += f"{statistics.median(spreads):.0%}" if spreads else ""
    dry = "A DRY RUN, WHICH MEASURES NOTHING. " if result["dry"] else ""
    return f"{dry}{sentence(result)}{noise}."


def readme_fits(results: Sequence[Result]) -> str:
    found = []
    for result in results:
        rows = of_part(result, "fits")
        columns = [peer for peer in COLUMNS if any(peer in row["peers"] for row in rows)]
        lines = []
        for row in rows:
            cells = [verdict(row["peers"][peer], "quartiles") if peer in row["peers"] else "" for peer in columns]
            bold = [
                f"**{cell}**" if peer in row["fastest"] else cell for peer, cell in zip(columns, cells, strict=True)
            ]
            lines.append([row["label"], times(1e3 * row["peers"][TORCH]["seconds"][1]), *bold])
        found += [table(["whole fit", "torch.nn, ms", *columns], lines), conditions(result)]
    return "\n\n".join(found)


def readme_not(results: Sequence[Result]) -> str:
    """Where another is faster than scratchcuda."""
    found = []
    for result in results:
        lines = []
        for row in (row for part in ("fits", "steps") for row in of_part(result, part)):
            best = row["fastest"][0]
            if OURS in row["peers"] and OURS not in row["fastest"]:
                lead = row["peers"][OURS]["seconds"][1] / row["peers"][best]["seconds"][1]
                ours = verdict(row["peers"][OURS], row["spread"])
                first = duration(row["peers"][best]["first use"])
                lines.append([row["label"], ", ".join(row["fastest"]), times(lead), first, ours])
        head = ["where", "fastest", "times as fast as scratchcuda", "its first use", "scratchcuda beside torch.nn"]
        found += [table(head, lines), conditions(result)]
    return "\n\n".join(found)


def row_table(row: Row) -> str:
    """Of a fit or a step, all that was measured."""
    lines = []
    for name, peer in row["peers"].items():
        low, median, high = (duration(value) for value in peer["seconds"])
        ratio = peer.get("ratio", {}).get(row["spread"])
        spread = f"{times(ratio[0])} to {times(ratio[2])}" if ratio else ""
        memory = "" if peer["peak bytes"] is None else f"{peer['peak bytes'] / 2**20:.1f}"
        of = f"**{name}**" if name in row["fastest"] else name
        cells = [of, median, f"{low} to {high}", str(len(peer["samples"])), verdict(peer, row["spread"]), spread]
        difference = "" if peer["difference"] is None else f"{peer['difference']:.0e}"  # no finite one
        lines.append([*cells, difference, duration(peer["first use"]), memory, f"{peer['cores']:.1f}"])
    head = ["peer", "median", "quartiles", "rounds", "faster", "quartiles", "difference", "first use", "MiB", "cores"]
    notes = "".join(f"\n- {name}: {note}" for name, note in row["notes"].items())
    return f"#### {row['label']}\n\n{row['title']}, {row['steps']} steps.\n\n{table(head, lines)}\n{notes}"


def scaling_table(axis: str, rows: Sequence[Row]) -> str:
    lines = []
    for name in bench_plots.names(rows):
        cells = []
        for row in rows:
            peer = row["peers"].get(name)
            text = f"{duration(peer['seconds'][1])} ({verdict(peer, 'quartiles')})" if peer else ""
            cells.append(f"**{text}**" if name in row["fastest"] else text)
        lines.append([name, *cells])
    return table([axis, *(str(row["size"]) for row in rows)], lines)


def op_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        times_of = [
            f"{name} {duration(peer['seconds'][1])}, cold {duration(peer['cold'][1])} ({verdict(peer, row['spread'])})"
            for name, peer in row["peers"].items()
            if peer["agrees"]
        ]
        shares = [f"{row[key]:.0%}" if key in row else "" for key in ("of copy", "of product", "of limit")]
        lines.append([row["label"], "; ".join(times_of), *shares, row.get("limit", "")])
    return table(["op", "times", "of a copy", "of a product", "of the limit", "limit"], lines)


def steps_table(rows: Sequence[Row]) -> str:
    """Of small layers, each ratio with the interval of its median."""
    peers = [peer for peer in bench_plots.names(rows) if peer != TORCH]
    lines = []
    for row in rows:
        cells = []
        for peer in (row["peers"][name] for name in peers):
            ratio = peer["ratio"]["interval"] if peer["agrees"] else None
            text = "" if ratio is None else "a tie" if is_tie(ratio) else f"{ratio[1]:.2f}"
            cells.append(f"{text}, {ratio[0]:.2f} to {ratio[2]:.2f}" if ratio else "other losses")
        seconds = f"{1e6 * row['peers'][TORCH]['seconds'][1]:.0f}"
        lines.append([str(row["width"]), str(row["batch size"]), row["activation"], seconds, *cells])
    return table(["width", "batch", "activation", "torch.nn, µs", *peers], lines)


def everything(name: str, result: Result, folder: Path) -> str:
    """The section of a device, and its plots as files in the folder."""
    beneath, peers = conditions(result), bench_plots.names(of_part(result, "fits") + of_part(result, "scaling"))
    found = [f"## {result['device']}", beneath]
    if result["clocks"]:
        found.append(f"Clocks at the beginning: {result['clocks'].replace(chr(10), '; ')}.")
    if bars := result["bars"]:
        states = {None: "not measured", True: "reached", False: "not reached"}
        lines = [[b["bar"], f"{b['target']:.3g}", _figure(b["measured"]), states[b["reached"]]] for b in bars]
        found.append(table(["bar", "at least", "measured", ""], lines))
    if fits := of_part(result, "fits"):
        bench_plots.ratios(fits, folder / f"bench-{name}-fits.png", _wrapped(beneath))
        found += ["### Whole fits", f"![Ratios of whole fits](bench-{name}-fits.png)", *map(row_table, fits)]
    if steps := of_part(result, "steps"):
        found += ["### Steps", *map(row_table, steps)]
    if scaling := of_part(result, "scaling"):
        text = "Medians; in brackets, how many times faster than torch.nn; bold: the fastest, and who ties with it."
        found.append(f"### Scaling\n\n{text}")
        for axis in dict.fromkeys(row["axis"] for row in scaling):
            rows = [row for row in scaling if row["axis"] == axis]
            file = f"bench-{name}-{axis}.png"
            bench_plots.over_size(axis, rows, peers, folder / file, _wrapped(beneath))
            found += [scaling_table(axis, rows), f"![Time over {axis}]({file})"]
    if ops := of_part(result, "ops"):
        found += ["### Single ops", op_table(ops)]
    if lost := [f"- {row['label']}: {row['error']}" for row in result["rows"] if "error" in row]:
        found += ["### Not measured", "\n".join(lost)]
    return "\n\n".join(found)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _wrapped(text: str) -> str:
    middle = text.find(", ", len(text) // 2) + 1
    return f"{text[:middle]}\n{text[middle:].strip()}"


def profiled(profile: Profile, docs: Path) -> str:
    """The README's profile: the ten most expensive ops of the step, and the plot of all of it, a file in docs."""
    (docs / "profile.png").write_bytes(plots.png(plots.bars(profile)))
    head = ["", "phase", "layer", "op", "warm, µs", "cold, µs", "FLOP", "bytes", "of floor", "limited by"]
    lines = []
    chosen = sorted(enumerate(profile.rows, 1), key=lambda numbered: numbered[1].calls * numbered[1].warm[1])[-10:]
    for i, row in sorted(chosen, key=lambda numbered: numbered[0]):
        times = [f"{1e6 * seconds[1]:.3g}" for seconds in (row.warm, row.cold)]
        work = [engineering(row.flops, ""), engineering(row.bytes, "B"), f"{row.of_floor:.0%}", row.limit]
        lines.append([str(i), row.phase, row.layer, row.op, *times, *work])
    first, this = next(iter(profile.steps)), profile.steps["this"]
    text = f"The most expensive ops of a {profile.title}, {profile.path}: {sentence(profile.conditions)}. "
    text += f"A step takes {duration(this.seconds[1])}, "
    text += f"{'as long as' if is_tie(this.ratio) else f'{this.ratio[1]:.2f} times as fast as'} {first}; its ops by "
    text += f"themselves take {duration(profile.in_ops)}."
    return f"{table(head, lines)}\n\n{text}\n\n![The step's time by op](docs/profile.png)"


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=here / "benchmarks/results", help="a folder of JSON files")
    parser.add_argument("--root", type=Path, default=here, help="of README.md and docs")
    arguments = parser.parse_args()
    results = {file.stem: json.loads(file.read_text()) for file in sorted(arguments.results.glob("*.json"))}
    profile = results.pop("profile", None)
    if not results:
        parser.error(f"there is no JSON file in {arguments.results}")
    readme, docs = arguments.root / "README.md", arguments.root / "docs"
    every = list(results.values())
    fill(readme, "fits", readme_fits(every))
    fill(readme, "when not", readme_not(every))
    if profile is not None:
        fill(readme, "profile", profiled(Profile.from_dict(profile), docs))
    steps = [f"{conditions(result)}\n\n{steps_table(rows)}" for result in every if (rows := of_part(result, "drop-in"))]
    fill(docs / "drop-in.md", "steps", "\n\n".join(steps))
    fill(docs / "benchmarks.md", "all", "\n\n".join(everything(name, of, docs) for name, of in results.items()))


if __name__ == "__main__":
    main()
