"""Shows a profile in the terminal, and writes it into files."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.console import Console
from rich.markup import escape

from scratchcuda._json import dumps
from scratchcuda.conditions import sentence
from scratchcuda.ops import _checks
from scratchcuda.profiler import plots
from scratchcuda.profiler.findings import FILES, Findings
from scratchcuda.profiler.tables import SORTS, Text, tables
from scratchcuda.tables import open_console, print_table


def show(profile: Findings, top: int, sort: str, console: Console | None = None) -> None:
    """Print the tables, of layers and ops the ``top`` most expensive ones by ``sort``, and what is missing."""
    _checks.positive_int("top", top)
    if sort not in SORTS:
        raise ValueError(f"sort is {sort!r}, expected one of {', '.join(SORTS)}")
    console = console or open_console()
    console.print(f"[bold]{escape(profile.title)}[/bold], {profile.path}", highlight=False)
    console.print(sentence(profile.conditions), highlight=False)
    _print(console, tables(profile, top, sort))
    for notice in profile.notices:
        console.print(f"[yellow]{escape(notice)}[/yellow]", highlight=False)


def show_comparison(
    differences: Mapping[str, tuple[Any, Any]], texts: Sequence[Text], console: Console | None = None
) -> None:
    """Print what differs besides the times of two profiles, by name, then the tables of these."""
    console = console or open_console()
    if differences:
        text = "; ".join(f"{name}, {first} and {second}" for name, (first, second) in differences.items())
        console.print(f"[yellow]They differ in {escape(text)}[/yellow]", highlight=False)
    _print(console, texts)


def _print(console: Console, texts: Sequence[Text]) -> None:
    for text in texts:
        console.print()
        print_table(console, text.header, text.rows, words=text.words, title=text.title, note=text.note)


def save(profile: Findings, folder: Path) -> list[Path]:
    """Write :data:`FILES`, of which the last, report.html, holds all others.

    Args:
        profile: what to write.
        folder: is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    *names, page = FILES
    contents = [dumps(profile.as_dict()).encode(), json.dumps(profile.trace).encode()]
    contents += [plots.png(draw(profile)) for draw in (plots.roofline, plots.bars)]
    found = dict(zip(names, contents, strict=True))
    encoded = {name: base64.b64encode(content).decode() for name, content in found.items()}
    template = Environment(loader=PackageLoader("scratchcuda.profiler", "."), autoescape=True).get_template(
        "report.html"
    )
    html = template.render(
        profile=profile, conditions=sentence(profile.conditions), tables=tables(profile), files=encoded
    )
    for name, content in (found | {page: html.encode()}).items():
        (folder / name).write_bytes(content)
    return [folder / name for name in FILES]
