"""make gpu-check without a GPU: that it goes through its parts, says what it cannot do, and fails where one fails."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_bench import check_dry_run

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools/gpu_check.py"
pytestmark = pytest.mark.backends("tensor")


@pytest.fixture
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(gpu_check, monkeypatch):
    """Its exit status, or what it says instead; here, where torch is imported already."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            gpu_check.main()
        return exited.value.code

    return run


def test_a_dry_run_goes_through_all_parts(tmp_path):
    select = "test_activations and rows and 255 or packs and double"
    command = [sys.executable, TOOL, "--dry", "--out", tmp_path, "--only", select]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["device"] == "none: a dry run"
    states = {name: part["passed"] for name, part in report["parts"].items()}
    assert states == {"suite": True, "instructions": True, "profile": True, "bench": True} | dict.fromkeys(
        ["build", "gpu", "memcheck", "racecheck"]
    )
    check_dry_run(report["parts"]["bench"]["measured"], "tensor plan")
    assert "A DRY RUN" in found.stdout
    assert "$ " in (tmp_path / "log.txt").read_text()


def test_a_failing_part_fails_the_check(run, tmp_path, capsys):
    assert run("--dry", "instructions", "--out", tmp_path, "--only", "no test has this name") == 1
    assert "instructions FAILED" in capsys.readouterr().out.replace("  ", " ")
    assert list(json.loads((tmp_path / "report.json").read_text())["parts"]) == ["instructions"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(run, capsys):
    assert "sees no GPU here" in run("gpu")
    assert run("frobnicate") == 2
    assert "unknown part frobnicate, expected build, suite" in capsys.readouterr().err


def test_a_part_that_takes_too_long_is_stopped_and_tells_what_it_has_found(gpu_check, tmp_path, monkeypatch):
    check = gpu_check.Check(tmp_path / "out", dry=True, select="", only="")
    (tmp_path / "test_it.py").write_text("def test_one(): pass\ndef test_two(): import time; time.sleep(60)\n")
    monkeypatch.setattr(gpu_check.Check, "seconds", lambda self, most: 6.0)
    found = check.pytest(str(tmp_path / "test_it.py"), f"--confcutdir={tmp_path}", "-p", "tests.conftest")
    assert not found["passed"]
    assert "took too long" in found["text"]
    assert "KeyboardInterrupt" in (tmp_path / "out/log.txt").read_text()
    broken = gpu_check.timed(lambda check: 1 / 0, check)
    assert (broken["passed"], broken["text"]) == (False, "ZeroDivisionError('division by zero')")


def test_differences_are_the_largest_by_kernel_and_dtype(gpu_check):
    def case(kernel, dtype, difference):
        properties = {"kernel": kernel, "dtype": dtype, "difference": difference}
        lines = "".join(f'<property name="{key}" value="{value}"/>' for key, value in properties.items())
        return gpu_check.ET.fromstring(f"<testcase><properties>{lines}</properties></testcase>")

    cases = [case("relu", "float32", 0.0), case("relu", "float32", 1e-7), case("tanh", "float16", 1e-4)]
    worst = {"relu": {"float32": 1e-7}, "tanh": {"float16": 1e-4}}
    assert gpu_check.differences([*cases, gpu_check.ET.fromstring("<testcase/>")]) == {gpu_check.DIFFERENCES: worst}
