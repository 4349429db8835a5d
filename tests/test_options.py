"""What commands share: their tables at every width, and the checks of their options."""

import io
import re
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
import typer
from rich.console import Console
from typer.testing import CliRunner

from scratchcuda import cli
from scratchcuda.bench import fits
from scratchcuda.bench import show as bench
from scratchcuda.compare import WORKLOADS, compare, network
from scratchcuda.options import check_file, check_folder
from scratchcuda.tables import open_console, print_table

pytestmark = pytest.mark.backends("tensor")


@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_tables_keep_their_numbers(width, capsys):
    header = ["peer", "median", "quartiles", "times as fast", "first use", "peak MiB", "difference"]
    rows = [["one, with [bold] words", "1.16 ms", "1.1 ms to 1.22 ms", "31.1", "4.64 ms", "0.8", "2e-16"]]
    rows += [["torch.compile, max-autotune-no-cudagraphs", "111 ms", "109 ms to 112 ms", "a tie", "1 s", "85.3", "0"]]
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None) if width else None
    print_table(console or open_console(), header, rows, words=["peer"], title="title", note="note")
    lines = (console.file.getvalue() if console else capsys.readouterr().out).splitlines()
    assert (lines[0].strip(), lines[-1].strip()) == ("title", "note")
    assert width is None or max(map(len, lines)) <= width
    assert all(any(cell in line for line in lines) for row in rows for cell in row[1:])
    assert width or [line.split()[0] for line in lines[1:4]] == ["peer", "one,", "torch.compile,"]  # a line each


@pytest.fixture(scope="module")
def shown():
    """What the commands show, each as a function of a console."""
    work = network((4, 6, 3), batch_size=8, batches=2, epochs=2)
    row = fits.measure(work, "float64", torch.device("cpu"), list(fits.PEERS)[:2], rounds=2)
    found = compare(WORKLOADS["breast-cancer"], epochs=2, repeats=1)
    return {"bench": partial(bench.show, row | {"part": "fits", "label": "a row"}), "compare": partial(cli.show, found)}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", ["bench", "compare"])
def test_commands_keep_their_numbers(command, width, shown):
    numbers = []
    for room in (width, 1000):
        console = Console(width=room, file=io.StringIO(), force_terminal=True, color_system=None)
        shown[command](console)
        numbers.append(set(re.findall(r"[-.\de%]*\d[-.\de%]*", console.file.getvalue())))
        assert max(map(len, console.file.getvalue().splitlines())) <= room  # or else the terminal cuts words
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("command", ["compare", "bench", "profile"])
def test_helps_cut_no_word(command):
    text = CliRunner(env={"COLUMNS": "60"}).invoke(cli.app, [command, "--help"]).output
    assert max(map(len, text.splitlines())) <= 60
    assert "…" not in text
    assert command != "bench" or all(key in text for key in fits.KEYS)


@pytest.mark.parametrize(
    ("check", "path", "message"),
    [
        (check_file, "no/such/file.json", "no file in an existing folder"),
        (check_file, ".", "no file in an existing folder"),
        (check_file, f"{__file__}/file.json", "no file in an existing folder"),
        (check_file, "/proc/file.json", "/proc is not writable"),
        (lambda *where: check_file(*where, ["png", "svg"]), "plot.gif", "ends in .gif, expected .png or .svg"),
        (check_folder, f"{__file__}/folder", "is a file, expected a folder"),
        (check_folder, "/proc/no/such", "/proc is not writable"),
        (partial(check_folder, names=("tests",)), Path(__file__).parents[1], "tests is no file in an existing folder"),
    ],
)
def test_what_cannot_be_written_is_said(check, path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(typer.BadParameter, match=message):
        check(Path(path), "--option")
    for _ in range(2):
        check_file(tmp_path / "file", "--option")
        check_folder(tmp_path / "new/folder", "--option")
        (tmp_path / "file").write_text("kept")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "kept")]
