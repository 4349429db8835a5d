"""scratchcuda bench, without a GPU: that all of it runs, compares before it times, and counts right; no speed."""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import marks
import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("rich")

from scratchcuda.bench import drop_in, fits, operations, rows
from scratchcuda.bench.agreement import Judge
from scratchcuda.bench.memory import Peak
from scratchcuda.bench.peers import COMPILED, GRAPH, SCRATCH, TORCH, Runner, eager, scratch
from scratchcuda.compare import WORKLOADS, Pair, network
from scratchcuda.ops import _registry
from scratchcuda.profiler import ceilings, turns
from scratchcuda.profiler.clocks import HostClock

TOOLS = Path(__file__).parent.parent / "tools"
CPU = torch.device("cpu")
TINY = network((4, 6, 3), "tanh", batch_size=8, batches=2, epochs=3)
DIGITS = fits.resized(WORKLOADS["digits"], 100, 20, epochs=2, batch_size=40)
pytestmark = pytest.mark.backends("tensor")


def measure(work=TINY, dtype="float64", peers=(TORCH, SCRATCH), **options):
    return fits.measure(work, dtype, CPU, list(peers), rounds=2, **options)


@pytest.mark.backends("emulator")  # test_gpu_check has one of fits and steps on torch's operations
def test_dry_run(tmp_path, usual_path):
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "scratchcuda", "bench", "--dry", "--json", file]
    peers = ["--peers", "scratchcuda,torch.nn-cuda-graph", "--peers", "scratchcuda.nn-converted"]
    found = subprocess.run([*command, *peers], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "A DRY RUN" in found.stdout
    result = json.loads(file.read_text())
    assert {row["part"] for row in result["rows"]} == set(rows.PARTS)
    assert result["dry"]
    assert result["left out"] == []
    labels = {row["label"]: row for row in result["rows"]}
    assert len(labels) == len(result["rows"])
    assert {label: row["error"] for label, row in labels.items() if "error" in row} == {}
    for row in labels.values():
        for peer in row["peers"].values():
            assert not peer["agrees"] or len(peer["seconds"]) == len(peer["ratio"]["interval"]) == 3
        if "first use" in row["peers"].get(SCRATCH, {}):
            ours = row["peers"][SCRATCH]
            assert ours["agrees"]
            assert ours["path"] == usual_path or row["dtype"] == "bfloat16"
            assert row["notes"][GRAPH] == "needs a GPU"
    measured = {row["op"] for row in labels.values() if "op" in row}
    assert measured == {name for name in _registry.OPS if not name.endswith("_step_")}  # whose kernels others have
    bars = {bar["bar"]: bar["reached"] for bar in result["bars"]}
    assert bars.pop(f"mlp float64 fit: times as fast as {GRAPH}") is None  # not measured
    assert len(bars) == len(operations.OPERATIONS) + 7 + 1  # products in two dtypes, and a fit
    assert set(bars.values()) == {False}
    labels["mlp float64 fit"]["peers"][SCRATCH]["difference"] = None  # of a training that diverges
    file.write_text(json.dumps(result))
    report(tmp_path)


def report(folder):
    """What the report makes of the results in a folder."""
    (folder / "docs").mkdir()
    for page, names in (
        ("README.md", ("fits", "when not")),
        ("docs/drop-in.md", ["steps"]),
        ("docs/benchmarks.md", ["all"]),
    ):
        (folder / page).write_text(
            "\n".join(f"<!-- {name}: begin -->\nformer text\n<!-- {name}: end -->" for name in names)
        )
    command = [sys.executable, TOOLS / "bench_report.py", "--results", folder, "--root", folder]
    subprocess.run(command, check=True)
    text = (folder / "docs/benchmarks.md").read_text()
    assert "A DRY RUN" in text
    assert "former text" not in text
    assert all((folder / "docs" / file).read_bytes().startswith(b"\x89PNG") for file in figures(text))
    assert "| mlp float64 fit |" in (folder / "README.md").read_text()
    assert "| 16 | 1 | ReLU |" in (folder / "docs/drop-in.md").read_text()


def figures(text):
    found = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(found) == 1 + 4
    return found


@pytest.mark.parametrize("peer", [peer for peer in fits.PEERS if peer not in COMPILED])
@pytest.mark.parametrize(("work", "dtype"), [(TINY, "float64"), (DIGITS, "float32")], ids=["regression", "classifier"])
def test_each_peer_reaches_the_losses_of_torch(peer, work, dtype):
    if peer.startswith("JAX"):
        pytest.importorskip("jax")
    found = measure(work, dtype, (TORCH, peer))
    if reason := found["notes"].get(peer):
        assert reason.startswith(("needs a GPU", "the documents define no cross-entropy"))
    else:
        assert found["peers"][peer]["agrees"], found["peers"][peer]["difference"]


def test_torch_compile_reaches_the_losses_of_torch(monkeypatch):
    """As a peer; inductor itself takes longer than all tests here."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    found = measure(peers=(TORCH, *COMPILED), validate=True)
    assert [peer for peer, row in found["peers"].items() if row["agrees"]] == [TORCH, *COMPILED]


def other_losses(pair, work, validate):
    right = eager(pair, work, validate)
    return replace(right, run=lambda: ([1.001 * loss for loss in right.run()[0]], []))


def other_training(pair, work, validate):
    return replace(eager(pair, replace(work, lr=1.001 * work.lr), validate), run=lambda: ([], []))


def half_trained(pair, work, validate):
    """Which reports nothing, and leaves the last layer alone."""
    right = eager(pair, work, validate)

    def run():
        right.run()
        pair.net[-1].load_state_dict({"weight": pair.start[-2], "bias": pair.start[-1]})
        return [], []

    return replace(right, run=run)


def idle(pair, work, validate):
    """Which reports what torch.nn has reported, and trains nothing."""
    known = eager(pair, work, validate).run()
    return Runner(lambda: known, lambda: pair.start)


def broken(pair, work, validate):
    raise RuntimeError("no compiler\nand more")


@pytest.mark.parametrize(
    ("peer", "dtype"),
    [
        *((peer, "float64") for peer in (other_losses, other_training, half_trained, idle)),
        *((peer, dtype) for peer in (half_trained, idle) for dtype in ("float32", "bfloat16")),
    ],
)
def test_no_ratio_for_another_training(peer, dtype):
    work = replace(TINY, lr=1.0)
    found = measure(work, dtype, [TORCH, "other"], known={TORCH: eager, "other": peer})
    assert "ratio" not in found["peers"]["other"]
    assert found["peers"]["other"]["difference"] > 0
    assert found["fastest"] == [TORCH]


def test_a_peer_that_fails_has_a_note_and_ours_costs_the_row():
    found = measure(peers=[TORCH, "broken"], known={TORCH: eager, "broken": broken})
    assert found["notes"] == {"broken": "RuntimeError: no compiler"}
    with pytest.raises(RuntimeError, match="no compiler"):
        measure(known={TORCH: eager, SCRATCH: broken})


def test_a_training_that_moves_nothing_compares_nothing():
    with pytest.raises(ValueError, match="only: nothing can be compared"):
        measure(replace(TINY, lr=1e-13))


@pytest.mark.parametrize(
    ("peer", "module"), [("JAX, jit of the fit", "jax"), ("scikit-learn", "sklearn.neural_network")]
)
def test_who_is_not_installed_has_a_note(peer, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peer in measure(peers=(TORCH, peer))["notes"]


def test_losses_of_parameters_are_of_one_function():
    pair = Pair(TINY, "cpu", torch.float32, 0)
    judge = Judge(TINY, pair.start, pair.x, pair.y, "float32")
    assert judge.before == pytest.approx(nn.functional.mse_loss(pair.net(pair.x), pair.y).item(), rel=1e-6)
    assert judge.loss([p + 1 for p in pair.start]) != judge.before
    judge.expected, judge.after = ([1.0], []), judge.before
    assert math.isnan(judge.difference(([math.nan], []), pair.start))


def test_small_steps(monkeypatch):
    """In turns, and no ratio for other losses."""
    row = drop_in.measure(8, 4, "ReLU", CPU, 4)
    assert all(len(peer["seconds"]) == 3 and peer["agrees"] for peer in row["peers"].values())
    right = drop_in.step_of
    monkeypatch.setattr(drop_in, "step_of", lambda peer, net, x, y: right(peer, net, x + (peer == "converted"), y))
    row = drop_in.measure(8, 4, "ReLU", CPU, 4)
    assert [peer for peer, found in row["peers"].items() if "ratio" in found] == [TORCH, "converted, fused"]


@pytest.fixture(scope="module")
def clock():
    return HostClock(2, least=0, flushed=1)


def measure_op(name, shape, dtype, clock, with_compiled=False):
    return operations.measure(name, shape, dtype, clock, ceilings.measure(clock, 1 << 10, 16), with_compiled)


def test_no_time_for_another_result(monkeypatch, clock):
    operation = replace(operations.OPERATIONS["relu"], ours=lambda z: z.relu() + 1e-3)
    monkeypatch.setitem(operations.OPERATIONS, "relu", operation)
    row = measure_op("relu", (100,), "float32", clock)
    assert "seconds" not in row["peers"][SCRATCH]
    assert "of copy" not in row


def test_what_does_not_compile_is_a_note(monkeypatch, clock):
    """As torch's fused SGD, which has no fake."""

    def compiled(*arguments):
        raise RuntimeError("no fake\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled)
    row = measure_op("sgd_update_", (7,), "float32", clock, with_compiled=True)
    assert row["notes"] == {operations.COMPILED: "RuntimeError: no fake"}
    assert set(row["peers"]) == {operations.TORCH, SCRATCH}


def test_work_by_hand(clock):
    row = measure_op("relu", (100,), "float32", clock)
    assert (row["bytes"], row["flops"]) == (4 * (100 + 100), 100)
    # x, delta, w and b twice; two for each product, the sum of delta, and two for each weight and bias
    row = measure_op("dense_update_", (9, 8, 5), "float64", clock)
    assert row["bytes"] == 8 * (9 * 8 + 9 * 5 + 2 * 8 * 5 + 2 * 5)
    assert row["flops"] == 9 * 8 * 5 * 2 + 9 * 5 + 2 * 8 * 5 + 2 * 5
    row = measure_op("sgd_update_", (7,), "float32", clock)
    assert (row["bytes"], row["flops"]) == (4 * 3 * 7, 2 * 7)


def test_peak_memory():
    with Peak(CPU) as peak:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        del block
    if peak.bytes is not None:
        assert 60 << 20 < peak.bytes < 100 << 20


def test_turns_rotate_and_end():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = turns.take_turns(calls, 3)
    assert "".join(order) == "abcbcacab"
    assert [len(samples) for samples in times.values()] == [3, 3, 3]
    assert len(turns.take_turns(calls, 9, seconds=0, least=2)["a"]) == 2


def test_ties_and_the_fastest():
    assert turns.is_tie([0.9, 1.1, 1.2])
    assert not turns.is_tie([1.01, 1.1, 1.2])
    samples = {"slow": [4.0, 4.1, 4.2, 4.3], "fast": [1.0, 2.0, 1.0, 2.0], "equal": [2.0, 1.0, 1.1, 2.1]}
    assert turns.fastest(samples, "slow", "quartiles") == ["fast", "equal"]
    assert turns.ratio(samples["slow"], samples["fast"])["quartiles"][1] == pytest.approx(3.075)
    low, median, high = turns.median_interval(range(1000))
    assert (low, median, high) == (469, 499.5, 531)


def test_bars():
    todo = [rows.Row("ops", label, dict, {"of copy": 0.85}) for label in ("a", "b", "c")]
    done = {"a": {"of copy": 0.9}, "b": {"of copy": 0.8}, "c": {"error": ""}}
    assert [bar["reached"] for bar in rows.reached(todo, done, dry=False)] == [True, False, None]
    assert [bar["reached"] for bar in rows.reached(todo, done, dry=True)] == [False, False, None]
    peers = {TORCH: {"agrees": True, "samples": [4.0, 8.0]}, SCRATCH: {"agrees": True, "samples": [1.0, 2.0]}}
    assert rows.figure({"peers": peers}, f"times as fast as {TORCH}") == 4
    peers[TORCH]["agrees"] = False
    assert rows.figure({"peers": peers}, f"times as fast as {TORCH}") is None


def test_another_batch_changes_names_alone(clock):
    """And has no bars, which are for the batch of the documents."""
    works = dict.fromkeys(rows.DTYPES, WORKLOADS["slr"])
    limits = ceilings.Ceilings("", {}, 1.0, {}, 1.0)
    own, other = (
        rows.rows(rows.Options(clock, limits, works, batch=batch, dry=True), ["steps", "fits"]) for batch in (None, 8)
    )
    own.sort(key=lambda row: [row.label for row in other].index(f"{row.label}, batch 8"))
    how = [[(row.measure.args[2:], row.measure.keywords) for row in made] for made in (own, other)]
    assert how[0] == how[1]
    assert "digits float32 fit with validation" in [row.label for row in own]
    assert [sum(bool(row.bars) for row in made) for made in (own, other)] == [1, 0]


def test_scratch_peer_gives_parameters_in_the_order_of_torch():
    pair = Pair(WORKLOADS["slr"], "cpu", torch.float64, 0)
    found = scratch(pair, WORKLOADS["slr"], False).parameters()
    assert [p.tolist() for p in found] == [p.tolist() for p in pair.start]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "expected one of fits, steps"),
        (["--workload", "slr,cifar"], "there is no 'cifar'"),
        (["--sizes", "3,x"], "--sizes"),
        (["--dtype", "int8"], "expected one of float64"),
        (["--peers", "scratchcuda,nobody"], "there is no 'nobody', expected one of torch.nn, scratchcuda"),
        (["--row", "nothing"], "no row's name holds 'nothing'"),
        (["--json", "/no/such/folder/x.json"], "--json"),
        (["--seconds", "nan"], "'--seconds': nan, expected a finite number of at least 1"),
        (["--workload", "mlp", "--sizes", "3,4"], "--sizes: 3,4 beside mlp, expected one of them"),
        (["ops", "--workload", "mlp"], "--workload: it belongs to fits, steps, none of which is given"),
        (["ops", "--peers", "scratchcuda, torch.compile"], "--peers: it belongs to fits, steps, scaling, none"),
        (["--batch", "7", "--row", "wide"], "no row's name holds 'wide'"),  # as drop-in's do
        (
            ["fits", "fits", "--workload", "slr", "--dtype", "float64, float64", "--row", "x"],
            "as of slr float64 fit; slr float64 fit with validation ",  # each once
        ),
    ],
)
def test_bad_options_are_exit_status_2(arguments, message, monkeypatch):
    from typer.testing import CliRunner

    from scratchcuda.cli import app

    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, ["bench", "--dry", *arguments])
    torch.set_num_threads(threads)
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_peers_have_a_key_each():
    assert list(fits.KEYS.values()) == list(fits.PEERS)
    assert not {" ", ",", "'"} & set("".join(fits.KEYS))


def test_marks_are_filled_and_missed():
    page = "a\n<!-- x: begin -->\nformer text\n<!-- x: end -->\nb"
    assert marks.filled(page, "x", "new\n") == page.replace("former text", "new")
    with pytest.raises(ValueError, match="no marks"):
        marks.filled(page, "y", "new")
