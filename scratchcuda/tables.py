"""Tables for a terminal: words wrap, numbers never do, and columns that find no room beside the others stand below."""

from collections.abc import Collection, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

#: Between two columns; and what is longer than this is broken within a word.
GAP, LONGEST_WORD = 2, 20


def open_console(stderr: bool = False) -> Console:
    """Of the output; on a pipe wide enough for any table, so that a row is a line there."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = 10_000
    return console


def print_table(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Collection[str] = (),
    title: str = "",
    note: str = "",
) -> None:
    """Print rows under a header, in several parts where the console is too narrow for one.

    Args:
        words: names of the columns whose cells may wrap; all others hold numbers, which may not.
        title, note: above and below.
    """
    widths, least = [], []
    for name, *cells in zip(header, *rows, strict=True):
        widths.append(max(map(cell_len, (name, *cells))))
        if name in words:
            longest = max(map(cell_len, " ".join((name, *cells)).split()), default=0)
            least.append(min(longest, LONGEST_WORD))
        else:
            least.append(max(map(cell_len, (*name.split(), *cells)), default=0))
    if title:
        console.print(Text(title, "bold"))
    for number, part in enumerate(_parts(least, console.width)):
        if number:
            console.print()
        room = {i: widths[i] for i in part}
        while _total(room.values()) > console.width:
            widest = max(part, key=lambda i: room[i] - least[i])
            if room[widest] <= least[widest]:
                break
            room[widest] -= 1
        table = Table(box=None, pad_edge=False)
        for i in part:
            side: JustifyMethod = "left" if header[i] in words else "right"
            table.add_column(header[i], justify=side, width=room[i], overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[i]) for i in part))
        console.print(table)
    if note:
        console.print(Text(note, "italic"))


def _parts(least: Sequence[int], width: int) -> Iterator[list[int]]:
    """The columns of each part, of which the first begins each."""
    part = [0]
    for i in range(1, len(least)):
        if len(part) > 1 and _total([least[j] for j in (*part, i)]) > width:
            yield part
            part = [0]
        part.append(i)
    yield part


def _total(widths: Collection[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)
