"""The generated parts of a page: each stands between two marks, <!-- name: begin --> and <!-- name: end -->."""

from pathlib import Path


def filled(page: str, name: str, text: str) -> str:
    """The page with this text between the marks of this name.

    Raises:
        ValueError: if it has no such marks.
    """
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the page has no marks {begin} and {end}")
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"


def fill(page: Path, name: str, text: str) -> None:
    """The same in a file."""
    page.write_text(filled(page.read_text(), name, text))
