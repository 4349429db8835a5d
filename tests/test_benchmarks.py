"""The benchmark of a GPU, without one: that all of it runs, compares before it times, and counts right; no speed."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scratchcuda import _emulator, _library, ops
from scratchcuda.compare import WORKLOADS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # scripts that import one another
drop_in, fit, gpu, kernels = (importlib.import_module(name) for name in ("drop_in", "fit", "gpu", "kernels"))

pytestmark = pytest.mark.backends("tensor")
TINY = gpu.resized(WORKLOADS["slr"], 20, 20, epochs=2, batch_size=8)


@pytest.mark.backends("emulator")  # test_gpu_check has one on torch's operations
def test_dry_run(tmp_path, usual_path):
    file = tmp_path / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--dry", "--seconds", "1e9", "--json", file]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "A DRY RUN" in found.stdout
    check_dry_run(json.loads(file.read_text()), usual_path)


def check_dry_run(result, path):
    """What has to be in a report."""
    assert result["dry"]
    assert result["left out"] == []
    rows = {row["label"]: row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    assert {label: row["error"] for label, row in rows.items() if "error" in row} == {}
    for row in rows.values():
        if row["part"] == "kernels":
            assert all(len(row[who][state]) == 3 for who in ("ours", "torch") for state in ("warm", "cold"))
            continue
        ours = row["peers"]["scratchcuda"]
        assert ours["agrees"]
        assert ours["path"] == path
        assert ours["predicted"] > 0
        assert row["notes"][gpu.GRAPH] == "needs a GPU"
    measured = {row["kernel"].split()[0] for row in rows.values() if "kernel" in row}
    assert measured == {name for name in _library.SCHEMAS if not name.endswith("_step_")}  # whose kernels others have
    bars = {bar["bar"]: bar["reached"] for bar in result["bars"]}
    assert bars.pop(f"mlp float64 fit: times as fast as {gpu.GRAPH}") is None  # not measured
    assert len(bars) == 2 * 6 + 14 + 1
    assert set(bars.values()) == {False}


def test_no_ratio_for_other_losses():
    def wrong(pair, work, validate):
        right = fit.torch_nn(pair, work, validate)
        return lambda: ([1.001 * loss for loss in right()[0]], [])

    def broken(pair, work, validate):
        raise RuntimeError("no compiler\nand more")

    peers = {peer: fit.PEERS[peer] for peer in ("torch.nn", "scratchcuda")} | {gpu.GRAPH: wrong, "broken": broken}
    found = fit.measure(TINY, "float64", False, 2, peers=peers)
    rows = {peer: row | {"predicted": 1.0} for peer, row in found["peers"].items()}
    assert [peer for peer, row in rows.items() if "ratio" in row] == ["torch.nn", "scratchcuda"]
    assert gpu.times_as_fast(rows, gpu.GRAPH) is None
    assert gpu.times_as_fast(rows, "torch.nn")[1] == 1
    assert found["notes"] == {"broken": "RuntimeError: no compiler"}


def test_drop_in_steps(monkeypatch):
    """In turns, and no ratio for other losses."""
    row = drop_in.measure(8, 4, "ReLU", 4, seconds=0)
    assert all(len(peer["seconds"]) == len(peer["ratio"]) == 3 for peer in row["peers"].values())
    right = drop_in.step_of
    monkeypatch.setattr(drop_in, "step_of", lambda peer, net, x, y: right(peer, net, x + (peer == "converted"), y))
    row = drop_in.measure(8, 4, "ReLU", 4, seconds=0)
    assert [peer for peer, found in row["peers"].items() if "ratio" in found] == ["torch.nn", "converted, fused"]
    assert "| other losses |" in drop_in.table([row])


def test_no_time_for_another_result(monkeypatch):
    kernel = replace(kernels.KERNELS["relu"], torchs=lambda z: z.relu() + 1e-3)
    monkeypatch.setitem(kernels.KERNELS, "relu", kernel)
    row = kernels.measure("relu", (100,), "float32", kernels.HostClock(), {})
    assert "differs from torch" in row["error"]
    assert "ours" not in row


def test_counts_by_hand():
    assert kernels.KERNELS["relu"].bytes(4, (100,)) == 4 * (100 + 100)
    assert kernels.KERNELS["cross_entropy classes"].bytes(8, (6, 10)) == 8 * (60 + 60) + 8 * 6
    # x, delta, w and b twice
    assert kernels.KERNELS["dense_update_"].bytes(4, (9, 8, 5)) == 4 * (9 * 8 + 9 * 5 + 2 * 8 * 5 + 2 * 5)
    clock = kernels.HostClock()
    row = kernels.measure("dense_update_", (9, 8, 5), "float64", clock, kernels.ceilings(clock, dry=True))
    assert row["operations"] == 9 * 8 * 5 * 2
    # 5 products, a softmax, the loss, 4 gradients of inputs, a softmax, 5 updates, and the batch
    assert gpu.launches(WORKLOADS["mlp"])["step"] == 5 + 1 + 1 + 4 + 1 + 5 + 1
    # the loss of 64 rows takes two
    assert gpu.launches(WORKLOADS["digits"]) == {
        "step": 1 + 3 + 2 + 2 + 3,
        "validation": 3 + 2,
        "torch's step": (5 + 2) + (2 + 2 + 3 * 3 - 1 + 1) + 1,
        "torch's validation": 5 + 2,
    }


@pytest.mark.backends("emulator")
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("mse", [(8192,), (8193,)]),
        ("cross_entropy classes", [(32, 512), (33, 512), (1, 513), (2, 513)]),
        ("dense_update_", [(1023, 8, 5), (1024, 8, 5), (1024, 257, 257)]),
        ("dense_backward_weights", [(1024, 8, 5)]),
        ("take_batch_", [(9, 3)]),
        ("dense_backward_input relu", [(9, 8, 5)]),
    ],
)
def test_launches_are_those_of_the_emulator(name, shapes):
    kernel = kernels.KERNELS[name]
    for shape in shapes:
        arguments = kernel.make(shape, torch.float32, "cpu")
        _emulator.record(True)
        (kernel.ours or getattr(ops, name.split()[0]))(*arguments)
        assert len(_emulator.launches()) == kernel.launches(*shape), shape
        _emulator.record(False)


def test_bars():
    jobs = [gpu.Job("kernels", label, dict, {"of copy": 0.85}) for label in ("a", "b", "c")]
    rows = {"a": {"figures": {"of copy": (0.9, 0.99)}}, "b": {"figures": {"of copy": (0.8, 0.99)}}, "c": {"error": ""}}
    assert [bar["reached"] for bar in gpu.reached(jobs, rows, dry=False)] == [True, False, None]
    assert [bar["reached"] for bar in gpu.reached(jobs, rows, dry=True)] == [False, False, None]
