"""What a profile is shown as: tables, plots, files, and the command line."""

import io
import itertools
import json
from dataclasses import replace

import bench_report
import pytest
import torch
from matplotlib.text import Text
from rich.console import Console
from typer.testing import CliRunner

from scratchcuda.cli import app
from scratchcuda.conditions import conditions
from scratchcuda.profiler import Profile, ceilings, plots, report
from scratchcuda.profiler.comparison import compared
from scratchcuda.profiler.findings import Ceilings, Kernel, Row, Step
from scratchcuda.profiler.tables import tables

pytestmark = pytest.mark.backends("tensor")
LIMITS = Ceilings("a device", {}, 1e12, dict.fromkeys(ceilings.DTYPES, 1e13), 1e-6)
KERNEL = Kernel("matmul<float>", [2, 1, 1], [256, 1, 1], 64, 4096, 0.5)


def row(i, warm=2e-5, flops=None):
    """Some of them lie on one another in the roofline, some beside one another."""
    return Row(
        phase=list(plots.PHASES)[i % 5],
        layer=f"{i} Dense",
        op="mm.out",
        calls=2,
        shapes=[[8, 16], []],
        dtype="float32",
        warm=[0.5 * warm, warm, 2 * warm],
        cold=[3e-5, 4e-5 * (1 + i % 4), 5e-4],
        host=[1e-6] * 3,
        flops=1000 * (1 + i % 7) ** 2 if flops is None else flops,
        bytes=4000 * (1 + i % 3),
        kernels=[KERNEL],
        floor=1e-5,
        limit="memory",
        error=1e-7,
        eager=[0.9, 1.0, 1.1],
        compiled=[2.0, 2.1, 2.2],
    )


def made(rows):
    steps = {"torch eager": Step("eager", [8e-5, 9e-5, 1e-4], 0.0, [1.0, 1.0, 1.0])}
    steps["this"] = Step("graph plan", [4e-5, 5e-5, 6e-5], 1e-7, [1.5, 1.8, 2.0])
    steps["wrong"] = Step("eager", [4e-5, 5e-5, 6e-5], 0.5, None)
    found = conditions(torch.device("cpu")) | {"device": "a device"}
    notices = ["Something is missing"]
    return Profile("a network", "float32", "graph plan", found, LIMITS, rows, steps, {"traceEvents": []}, notices)


def test_tables():
    layers, times, work, steps, kernels = tables(made([row(0, warm=1e-5), row(1, warm=3e-5)]))
    assert layers.rows == [["0 Dense", "batch", "2", "20", "25.0%"], ["1 Dense", "forward", "2", "60", "75.0%"]]
    assert all(len(set(table.header)) == len(table.header) for table in (times, steps))
    assert [line[times.header.index("share")] for line in times.rows] == ["25.0%", "75.0%"]
    assert times.rows[0][6:8] == ["10", "5 to 20"]
    assert work.rows[0][3:6] == ["1 k", "4 kB", "25 M"]  # 1000 FLOP and 4000 bytes in 40 us
    assert [work.rows[0][work.header.index(f"{who} / this")] for who in ("eager", "compile")] == ["a tie", "2.10"]
    assert [line[4] for line in steps.rows] == ["1", "1.80", "none: other losses"]
    assert kernels.rows[0] == ["1", "matmul<float>", "2x1x1", "256x1x1", "64", "4096", "50%"]
    assert "within the step they run faster" in steps.note  # 80 us of ops in 50 us


@pytest.mark.parametrize(
    ("sort", "order"),
    [("time", "4 1 2"), ("flop", "3 2 1"), ("bytes", "3 1 2"), ("calls", "1 2 3"), ("cold", "4 3 1")],
)
def test_the_most_expensive_ops_come_first(sort, order):
    """Of them the first and the last are alike, but for their layers."""
    rows = [row(0), row(1), row(2), row(3, warm=9e-5, flops=1), replace(row(0), layer="5 Dense")]
    layers, times, *_, kernels = tables(made(rows), 3, sort)
    assert " ".join(line[0] for line in times.rows) == " ".join(line[0] for line in kernels.rows) == order
    assert ["1", "batch", "0 Dense and 1 more", "mm.out", "4"] in [line[:5] for line in times.rows]
    assert layers.rows[-1][:3] == ["2 other ops", "", "4"]
    assert sum(float(line[3]) for line in layers.rows) == pytest.approx(1e6 * made(rows).in_ops)


@pytest.mark.parametrize(("options", "message"), [({"top": 0}, "top is 0"), ({"sort": "x"}, "sort is 'x', expected")])
def test_what_show_does_not_take(options, message):
    with pytest.raises(ValueError, match=message):
        made([row(0)]).show(**options)


def test_two_profiles_side_by_side():
    first, second = made([row(0), row(1), row(6)]), made([row(0, warm=1e-5), replace(row(6), shapes=[[4, 16]])])
    second.rows[1].op = "addmm"
    second.dtype, second.conditions["versions"] = "float64", first.conditions["versions"] | {"torch": "1.0"}
    second.steps["this"].seconds, second.conditions["date"] = [1e-5] * 3, "another day"
    del second.steps["wrong"]
    found = first.compare(second)
    torch_there = first.conditions["versions"]["torch"]
    assert found.differences == {"dtype": ("float32", "float64"), "torch": (torch_there, "1.0")}
    assert found.ops("phase")["batch",].ratio == [0.5, 2.0, 8.0]  # so that it is a tie
    steps, phases, layers, ops = compared(found, 2)
    assert [line[-1] for line in steps.rows] == ["a tie", "5.00", ""]
    assert [line[0] for line in phases.rows] == ["batch", "forward"]
    assert phases.rows[1][1:] == ["80", "40 to 160", "40", "20 to 80", "a tie"]
    assert layers.rows[0][:3] == ["1", "0 Dense", "batch"]
    assert ["6 Dense", "forward", "mm.out", "40", "20 to 80", "", "", ""] in [
        line[1:] for line in compared(found, 9)[-1].rows
    ]
    assert len(layers.rows) == len(ops.rows) == 2
    with pytest.raises(TypeError, match="other is dict, expected a Profile"):
        first.compare(second.as_dict())


def test_many_ops_are_bars_by_layer_and_phase():
    rows = [replace(row(i, warm=1e-5), layer=f"{i % 4} Dense") for i in range(40)]
    axes = plots.bars(made(rows)).axes[0]
    assert len(axes.patches) == 4 * 5
    assert axes.get_yticklabels()[0].get_text() == "0 Dense: 2 ops"


def test_the_readme_shows_a_profile(tmp_path):
    text = bench_report.profiled(made([row(0), row(1)]), tmp_path)
    assert text.splitlines()[2].startswith("| 1 | batch | 0 Dense | mm.out | 20 | 40 | 1 k | 4 kB | 25% | memory |")
    assert "A step takes 50 µs, 1.80 times as fast as torch eager" in text
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_markup_in_names_is_text(tmp_path):
    profile = made([row(0)])
    profile.title = "<b> [/x] $y$"
    console = Console(record=True, width=200, file=io.StringIO())
    report.show(profile, 15, "time", console)
    assert "<b> [/x] $y$" in console.export_text()
    report.save(profile, tmp_path)
    assert "<h1>&lt;b&gt; [/x] $y$</h1>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_shows_all_of_it(width):
    profile = made([replace(row(0), layer="encoder.layers.0.self_attn MultiheadAttention", limit="launch latency")])
    console = Console(record=True, width=width, file=io.StringIO())
    report.show(profile, 15, "time", console)
    comparison = profile.compare(replace(profile, dtype="float64"))
    report.show_comparison(comparison.differences, compared(comparison, 15), console)
    shown = console.export_text()
    expected = ("a network", "Something is missing", "matmul<float>", "latency", "They differ in dtype, float32 and")
    assert all(text in shown for text in expected)
    texts = [*tables(profile, 15), *compared(comparison, 15)]
    numbers = {cell for of in texts for line in of.rows for cell in line if cell[:1].isdigit()}
    assert numbers
    assert {cell for cell in numbers if cell not in shown} <= {"8x16, 1"}  # of words
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("count", [1, 14, 45])
def test_no_label_of_the_plots_covers_another(count):
    profile = made([row(i, warm=1e-6 * (1 + i)) for i in range(count)])
    roofline, bars = plots.roofline(profile), plots.bars(profile)
    for figure in (roofline, bars):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        boxes = [Text.get_window_extent(text) for text in (*axes.texts, *axes.get_yticklabels()) if text.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(axes.get_window_extent().containsx(Text.get_window_extent(text).x1) for text in axes.texts)
        assert axes.get_xlabel()
    assert "FLOP / byte" in roofline.axes[0].get_xlabel()
    numbers = sorted(int(n) for text in roofline.axes[0].texts for n in text.get_text().split(","))
    assert numbers == list(range(max(1, count + 1 - plots.LABELS), count + 1))  # those that take longest
    assert len(bars.axes[0].patches) == min(count, plots.BARS + 1)
    total = sum(row.calls * row.warm[1] for row in profile.rows)
    assert sum(bar.get_width() for bar in bars.axes[0].patches) == pytest.approx(total)


def test_ops_without_flops_are_not_in_the_roofline():
    assert [text.get_text() for text in plots.roofline(made([row(0, flops=0), row(1)])).axes[0].texts] == ["2"]


def run(*arguments):
    return CliRunner().invoke(app, ["profile", *arguments])


@pytest.mark.parametrize("what", [["slr"], ["--sizes", "3,4,2", "--batch", "5", "--dtype", "bfloat16"]])
def test_the_command_writes_a_report(what, tmp_path, monkeypatch):
    monkeypatch.setattr(ceilings, "of", lambda clock: LIMITS)
    found = run(*what, "--samples", "2", "--no-compile", "--out", str(tmp_path / "out"))
    assert found.exit_code == 0, found.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "profile.json",
        "trace.json",
        "roofline.png",
        "step.png",
        "report.html",
    }
    profile = json.loads((tmp_path / "out/profile.json").read_text())
    assert profile["rows"]
    assert all(of["bytes a second"] > 0 and of["of floor"] > 0 for of in profile["rows"])
    assert profile["steps"]["this"]["ratio"]
    assert Profile.from_dict(profile).as_dict() == profile
    names = {event.get("name") for event in json.loads((tmp_path / "out/trace.json").read_text())["traceEvents"]}
    assert {"step", "loss"} <= names
    assert what == ["slr"] or {"forward 0 Dense", "backward 1 Dense", "update 0 Dense"} <= names
    html = (tmp_path / "out/report.html").read_text()
    assert html.count("data:image/png;base64,iVBOR") == 2
    assert 'src="http' not in html
    assert profile["title"] in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slr", "--sizes", "3,3"], "expected one of them"),
        (["slr", "--batch", "1000"], "1000 is more than the 100 samples"),
        (["slr", "--out", __file__], "expected a folder"),
    ],
)
def test_the_command_says_what_does_not_fit(arguments, message):
    found = run(*arguments)
    assert found.exit_code == 2
    assert message in " ".join(found.output.replace("│", " ").split())


def test_nsight(monkeypatch):
    arguments = ["--sizes", "3, 4", "--ncu", "--nsys", "--device", "cuda"]
    monkeypatch.setattr("sys.argv", ["scratchcuda", "profile", *arguments])
    command = "scratchcuda profile --sizes '3, 4' --device cuda --steps-only 3"
    assert run(*arguments).output.splitlines() == [
        f"ncu --set full --nvtx --profile-from-start off --export scratchcuda {command}",
        f"nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --output=scratchcuda {command}",
    ]
    assert "there is no 'cifar'" in run("cifar", "--ncu").output
    assert "'x', expected two or more positive integers" in run("--sizes", "x", "--ncu").output
    assert run("mlp", "--steps-only", "2").exit_code == 0
