"""Shows a profile in the terminal, and writes it into files."""

import base64
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scratchcuda.conditions import sentence
from scratchcuda.profiler import plots
from scratchcuda.profiler.profile import Profile
from scratchcuda.profiler.tables import tables

#: Columns of the terminal that the tables need; used where the output is no terminal.
WIDTH = 140


def show(profile: Profile, console: Console | None = None) -> None:
    """Print the tables and what is missing."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(f"[bold]{escape(profile.title)}[/bold], {profile.path}", highlight=False)
    console.print(sentence(profile.conditions), highlight=False)
    for text in tables(profile):
        # Where there is no room for all, without the quartiles, which the files have.
        kept = [i for i, name in enumerate(text.header) if name != "quartiles" or console.width >= WIDTH]
        table = Table(
            *(text.header[i] for i in kept),
            title=text.title,
            caption=text.note,
            title_justify="left",
            caption_justify="left",
        )
        for row in text.rows:
            table.add_row(*(escape(row[i]) for i in kept))
        for column, value in zip(table.columns, (text.rows[0][i] for i in kept), strict=True):
            column.justify = "right" if value[:1].isdigit() and "x" not in value else "left"
        console.print(table)
    for notice in profile.notices:
        console.print(f"[yellow]{escape(notice)}[/yellow]", highlight=False)


def save(profile: Profile, folder: Path) -> list[Path]:
    """Write profile.json, trace.json, roofline.png, step.png, and report.html, which holds all of them.

    Args:
        profile: what to write.
        folder: is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "profile.json": json.dumps(profile.as_dict(), indent=1).encode(),
        "trace.json": json.dumps(profile.trace).encode(),
        "roofline.png": plots.png(plots.roofline(profile)),
        "step.png": plots.png(plots.bars(profile)),
    }
    encoded = {name: base64.b64encode(content).decode() for name, content in found.items()}
    template = Environment(loader=PackageLoader("scratchcuda.profiler", "."), autoescape=True).get_template(
        "report.html"
    )
    html = template.render(
        profile=profile, conditions=sentence(profile.conditions), tables=tables(profile), files=encoded
    )
    for name, content in (found | {"report.html": html.encode()}).items():
        (folder / name).write_bytes(content)
    return [folder / name for name in (*found, "report.html")]
