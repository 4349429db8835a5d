"""make gpu-check without a GPU: that it goes through its parts, says what it cannot do, and fails where one fails."""

import json
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import gpu_parts
import gpu_predictions
import pytest
import torch

from scratchcuda.bench import rows
from scratchcuda.compare import WORKLOADS
from scratchcuda.profiler.ceilings import Ceilings
from scratchcuda.profiler.clocks import HostClock

TOOL = Path(gpu_check.__file__)
pytestmark = pytest.mark.backends("tensor")


@pytest.fixture
def run(monkeypatch):
    """Its exit status, or what it says instead; here, where torch is imported already."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            gpu_check.main()
        return exited.value.code

    return run


def test_a_dry_run_goes_through_all_parts(tmp_path):
    """But for one of the two profiles and the building of the emulator, of which it would show no more."""
    select = "test_activations and rows and 255 or packs and double"
    parts = [part for part in gpu_parts.PARTS if part not in ("profile-digits", "emulator")]
    command = [sys.executable, TOOL, *parts, "--dry", "--out", tmp_path, "--only", select]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dry"]
    states = {name: part["passed"] for name, part in report["parts"].items()}
    left_out = ("build", "gpu", "memcheck", "racecheck", "compilers")
    assert states == dict.fromkeys(parts, True) | dict.fromkeys(left_out)
    for part in ("bench", "peers"):
        assert "0 failed, 0 left out" in report["parts"][part]["text"]
        assert report["parts"][part]["measured"]["rows"]
    assert "A DRY RUN" in found.stdout
    assert "$ " in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("names", [["first"], ["second"], ["first", "second"], ["suite", "build"]])
def test_runs_and_parts_are_chosen_by_name(names):
    found = [part for group in gpu_parts.groups_of(names) for part in group]
    asked = {part for name in names for group in gpu_parts.RUNS.get(name, [[name]]) for part in group}
    assert found == [part for part in gpu_parts.PARTS if part in asked]


def test_a_failing_part_fails_the_check(run, tmp_path, capsys):
    assert run("--dry", "instructions", "--out", tmp_path, "--only", "no test has this name") == 1
    assert "instructions FAILED" in " ".join(capsys.readouterr().out.split())
    assert list(json.loads((tmp_path / "report.json").read_text())["parts"]) == ["instructions"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_or_without_torch_it_says_so(run, capsys):
    assert "sees no GPU here" in run("gpu")
    assert run("frobnicate") == 2
    assert "unknown frobnicate, expected first, second, build" in capsys.readouterr().err
    bare = subprocess.run([sys.executable, "-IS", TOOL], capture_output=True, text=True)
    assert "has no torch, expected a CUDA build" in bare.stderr
    assert "Traceback" not in bare.stderr


@pytest.mark.parametrize(
    ("last", "workers", "passed", "text"),
    [(99, 0, None, "; no time"), (99, 2, None, "; no time"), (-99, 0, False, "; took too long")],
)
def test_a_part_tells_what_it_has_found_in_its_time(last, workers, passed, text, tmp_path, monkeypatch):
    """Whether it ends by itself, as its time is over when the first test has ended, or has to be stopped."""
    check = gpu_check.Check(tmp_path / "out", dry=True, select="", only="")
    (tmp_path / "test_it.py").write_text(
        f"""import pathlib, time, pytest
@pytest.mark.parametrize("i", range(9))
def test(i):
    if i and {last < 0}:
        pathlib.Path({str(tmp_path / "second")!r}).touch()
        time.sleep(60)"""
    )
    asked = []

    def seconds(self, most=0):
        """The second time it is asked, by what stops pytest, the first test has ended."""
        asked.append(most)
        if last > 0 or len(asked) == 1:
            return 90
        end = time.monotonic() + 90
        while not (tmp_path / "second").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return 1

    monkeypatch.setattr(gpu_check.Check, "seconds", seconds)
    monkeypatch.setattr(gpu_check, "LAST_SECONDS", last)
    options = f"--confcutdir={tmp_path}", "-p", "tests.conftest"
    found = check.pytest(str(tmp_path / "test_it.py"), *options, workers=workers)
    assert (found["passed"], text in found["text"]) == (passed, True), found["text"]
    assert found["text"].startswith(("1 passed", "2 passed"))


def test_a_part_that_breaks_or_has_no_time_costs_itself_alone(tmp_path, monkeypatch):
    check = gpu_check.Check(tmp_path, dry=True, select="", only="")
    broken = gpu_check.timed(lambda check: 1 / 0, check)
    assert (broken["passed"], broken["text"]) == (False, "ZeroDivisionError('division by zero')")
    monkeypatch.setattr(check, "end", 0)
    late = gpu_check.timed(lambda check: 1 / 0, check)
    assert (late["passed"], late["text"]) == (None, "no time was left")


def test_differences_are_the_largest_by_kernel_and_dtype():
    def case(kernel, dtype, difference):
        properties = {"kernel": kernel, "dtype": dtype, "difference": difference}
        lines = "".join(f'<property name="{key}" value="{value}"/>' for key, value in properties.items())
        return gpu_check.ET.fromstring(f"<testcase><properties>{lines}</properties></testcase>")

    cases = [case("relu", "float32", 0.0), case("relu", "float32", 1e-7), case("tanh", "float16", 1e-4)]
    worst = {"relu": {"float32": 1e-7}, "tanh": {"float16": 1e-4}}
    assert gpu_check.differences([*cases, gpu_check.ET.fromstring("<testcase/>")]) == {gpu_check.DIFFERENCES: worst}


COUNTED = """==PROF== Connected to process 7
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name"
"0","matmul","GPU Speed Of Light Throughput","Duration","ms","4.20",""
"0","matmul","GPU Speed Of Light Throughput","","","","SOLBottleneck"
"1","softmax, backward","Occupancy","Achieved Occupancy","%","97.5",""
"""


def test_the_last_tables_show_counters_bars_and_predictions(capsys):
    """Each prediction finds its figure among the rows that the first run measures on a GPU."""
    clock = HostClock(2, least=0, flushed=1)
    clock.device = torch.device("cuda")
    options = rows.Options(clock, Ceilings("", {}, 1.0, {}, 1.0), {name: WORKLOADS[name] for name in ("mlp", "slr")})
    made = [row.label for row in rows.rows(options, ["fits", "ops"])]
    measured = [label for label in made if any(text in label for text in gpu_parts.ROWS)]
    assert len(measured) < len(made) / 2
    peer = {"seconds": [1.0, 2.0, 3.0]}
    of = {"flops": 4e12, "steps": 4, "of copy": 0.5, "of limit": 0.25}
    of["peers"] = dict.fromkeys(["scratchcuda", "torch.addmm", "torch.nn, CUDA Graph"], peer)
    bar = {"bar": "mlp float64 fit: times as fast as torch.nn", "target": 10.0, "measured": 12.5, "reached": True}
    launches = [{"op": f"scratchcuda::{op}", "warm": [0, 29e-6, 0], "calls": 5} for op in ("dense", "dense_update_")]
    profiled = {"rows": launches, "seconds in ops": 1e-3, "steps": {"this": {"seconds": [0, 1.02e-3, 0]}}}
    parts = {
        "bench": {"measured": {"rows": [of | {"label": label} for label in measured], "bars": [bar]}},
        "profile-mlp": {"measured": profiled},
        "counters": {"counters": gpu_parts.read_counters(COUNTED)},
        "gpu": {gpu_check.DIFFERENCES: {"relu": {"float32": 1e-7}}},
    }
    gpu_check.show({"dry": False, "parts": parts})
    shown = capsys.readouterr().out
    assert [name for name, found in gpu_predictions.compared(parts) if found is None] == []
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for line in (
        "0 matmul: Duration 4.20 ms",
        "1 softmax, backward: Achieved Occupancy 97.5 %",
        "mlp float64 fit: times as fast as torch.nn 10 12.5 reached",
        "forward, float32 33 2 0.06 TFLOP/s",
        "an update of the MLP 29 29 1.00 us",
        "between the launches of a step of the MLP 20 20 1.00 us",
        "softmax, rows of 10 3 to 4 4 1.14 times the floor",
        "softmax, rows of 32768 66 to 80 50 0.68 % of a copy",
    ):
        assert line in lines
    assert "unknown" in gpu_predictions.table({})
