"""``scratchcuda compare`` and the package around it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("typer")
from typer.testing import CliRunner

import scratchcuda
from scratchcuda import Tanh
from scratchcuda.__main__ import main
from scratchcuda._build.library import BuildError
from scratchcuda.cli import app

ROOT = Path(__file__).parent.parent
QUICK = ["--epochs", "2", "--repeats", "1"]


def compare(*arguments):
    device = torch.get_default_device().type
    return CliRunner().invoke(app, ["compare", "--device", device, *(str(argument) for argument in arguments)])


def test_compare_prints_draws_and_writes(tmp_path):
    result = compare("breast-cancer", "slr", *QUICK, "--plot", tmp_path / "p.png", "--json", tmp_path / "c.json")
    assert result.exit_code == 0, result.output
    assert result.output.count("They agree") == 2
    assert result.output.count("MAPE of predictions") == 1
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "c.json").read_text())
    assert (found["agrees"], [other["agrees"] for other in found["further"]]) == (True, [True])
    assert len(found["scratch"]["train"]) == len(found["torch"]["valid"]) == found["epochs"] == 2
    assert found["scratch"]["accuracy"] == found["torch"]["accuracy"]
    assert len(found["torch"]["accuracy"]) == 2
    assert found["torch"]["accuracy"][-1] > 0.9
    assert found["ratio"] > 0
    assert ("ratio" in result.output) == (scratchcuda.ops._backend.current != "emulator")  # whose times are no speed


def test_a_network_of_its_own_as_json_alone():
    result = compare("--sizes", "3,4,2", "--activation", "tanh", "--batch", 8, *QUICK, "--json", "-")
    found = json.loads(result.stdout)
    assert (found["title"], found["batch_size"]) == ("multilayer perceptron 3-4-2, tanh", 8)
    assert "They agree" in result.stderr


@pytest.mark.parametrize(
    ("factor", "how"),
    [(-1, "the largest relative difference is"), (float("nan"), "scratchcuda is NaN from epoch 0 on, torch.nn is not")],
)
def test_disagreement_is_exit_status_1(factor, how, monkeypatch):
    monkeypatch.setattr(Tanh, "backward", lambda self, delta, a: factor * delta)
    result = compare("slr", "mlp", *QUICK)
    assert result.exit_code == 1
    assert f"They disagree: {how}" in result.output


@pytest.mark.backends("tensor")  # once: no backend has a part in it
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (BuildError("a.cuh:19:32: error: expected ';'\ng++ failed", "see above"), "scratchcuda: a.cuh:19:32: error: "),
        (BuildError("there is no g++", "type this"), "scratchcuda: there is no g++; type this"),
        (ModuleNotFoundError(name="matplotlib.figure"), "The command line needs matplotlib. Install scratchcuda with"),
    ],
)
def test_what_is_missing_or_wrong_is_shown_alone(error, shown, monkeypatch):
    monkeypatch.setattr("scratchcuda.cli.compare", Mock(side_effect=error))
    monkeypatch.setattr(sys, "argv", ["scratchcuda", "compare"])
    with pytest.raises(SystemExit, match=f"^{re.escape(shown)}"):
        main()


def test_divergence_is_said(tmp_path):
    """In columns that hold no losses of a hundred digits, and in JSON, which has no Infinity and no NaN."""
    file = tmp_path / "c.json"
    result = compare("slr", "--epochs", 40, "--repeats", 1, "--lr", 1e9, "--json", file)
    assert result.exit_code == 1
    assert "diverged" in result.output
    assert max(map(len, re.findall(r"\S+", result.output))) < 20
    found = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert found["scratch"]["train"][-1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slr", "cifar"], "there is no 'cifar', expected one of slr, mlp, digits, diabetes, breast-cancer, mlp-1024"),
        ([""], "there is no ''"),
        (["slr", "--epochs", "0"], "'--epochs': 0, expected an integer of at least 1"),
        (["slr", "--device", "mps"], "--device: there is no 'mps', expected cpu or cuda"),
        (["slr", "--device", "cuda:99"], "--device: cuda:99 cannot be used ("),
        (["slr", "--sizes", "3,4"], "--sizes: 3,4 beside slr, expected one of them"),
        (["--sizes", "a,b"], "--sizes: 'a,b', expected two or more positive integers"),
        (["--sizes", "3"], "--sizes: '3', expected two or more positive integers"),
        (["--sizes", "3,4", "--activation", "swish"], "--activation: there is no 'swish', expected one of none, relu"),
        (["--activation", "relu"], "--activation: it belongs to --sizes"),
        (["slr", "--dtype", "int8"], "--dtype: there is no 'int8', expected one of float64, float32"),
        (["slr", "--lr", "inf"], "'--lr': inf, expected a finite number of at least 0"),
        (["slr", "--seed", "-1"], "'--seed': -1, expected an integer from 0 to 4294967295"),
        (["slr", "--plot", "/no/such/folder/p.png"], "--plot"),
        (["slr", "--plot", "p.gif"], "--plot: p.gif ends in .gif"),
        (["slr", "--json", "/tmp"], "--json"),
        (["slr", "--json", ""], "'--json': '', expected a name"),
        (["slr", "--plot", "p.png", "--json", "./p.png"], "--json: p.png is what --plot writes"),
    ],
)
def test_bad_options_are_exit_status_2(arguments, message, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = compare(*arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.backends("tensor")  # once: no backend has a part in it
def test_module_and_version():
    output = subprocess.check_output([sys.executable, "-m", "scratchcuda", "--version"], text=True)
    assert output.startswith(f"scratchcuda {scratchcuda.__version__}, torch ")


def test_versions_stand_in_one_place():
    assert f"## {scratchcuda.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.backends("tensor")  # once: no backend has a part in it
def test_import_needs_torch_only():
    """Nothing of the command line or the tests comes in with the library."""
    code = "import sys, scratchcuda; print(*{'typer', 'rich', 'matplotlib', 'sklearn'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


@pytest.mark.backends("tensor")  # its text speaks of the plan
@pytest.mark.parametrize("page", ["README.md", "docs/profiler.md", "docs/sklearn.md"])
def test_pages_show_true_code(page, tmp_path, monkeypatch):
    """Every Python block of a page runs, one after another."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
