"""What the stand-in has to notice, and what the profiler and the benchmarks do on it."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from scratchcuda import ops
from scratchcuda.bench import rows
from scratchcuda.bench.peers import GRAPH, SCRATCH, TORCH
from scratchcuda.bench.run import run
from scratchcuda.cli import app
from scratchcuda.compare import WORKLOADS
from scratchcuda.profiler import ceilings
from scratchcuda.profiler.clocks import DeviceClock, capture

pytestmark = pytest.mark.backends("kernels")


def captured(call, **options):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        out = call()
    return graph, out


def on_another_stream(x):
    with torch.cuda.stream(torch.cuda.Stream()):
        return torch.empty_like(x)


#: What cannot be captured, and what is said of it.
REFUSED = {
    "item": (lambda x: x.sum().item(), "_local_scalar_dense: operation not permitted"),
    "tolist": (lambda x: x.tolist(), "copy_: operation not permitted"),
    "cpu": (lambda x: x.cpu(), "copy_: operation not permitted"),
    "from the cpu": (lambda x: torch.ones(3, device="cpu").cuda(), "copy_: operation not permitted"),
    "nonzero": (lambda x: x.nonzero(), "nonzero: operation not permitted"),
    "a mask": (lambda x: x[x > 0], "operation not permitted"),
    "synchronize": (lambda x: torch.cuda.synchronize(), "cudaDeviceSynchronize: operation not permitted"),
    "a stream's": (lambda x: torch.cuda.current_stream().synchronize(), "cudaStreamSynchronize: operation not"),
    "an event's": (lambda x: torch.cuda.current_stream().record_event().synchronize(), "operation not permitted"),
    "another stream": (on_another_stream, "cudaMalloc for stream .* is not permitted when stream .* is capturing"),
    "another device": (lambda x: torch.empty(3, device="cuda:1"), "cudaMalloc for stream 0 of cuda:1 is not permitted"),
    "its own replay": (lambda x: captured(x.sum), "operation not permitted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_waits_or_allocates_elsewhere_is_not_captured(name):
    call, message = REFUSED[name]
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match=message):
        captured(lambda: call(x))
    captured(lambda: x + 1)[0].replay()  # the next capture is as good as any


def test_nothing_runs_while_it_is_captured_and_all_of_it_in_a_replay():
    x, w = torch.ones(4, 3), torch.ones(3, 2)
    graph, (y, z) = captured(lambda: (ops.dense(x.add_(1), w), torch.ones(2).mul_(3)))
    assert x.eq(1).all()
    assert y.isnan().all()
    for value in (2, 3):
        graph.replay()
        assert x.eq(value).all()
        assert y.eq(3 * value).all()
        assert z.eq(3).all()


def test_a_capture_draws_nothing_and_replays_draw_anew():
    x = torch.ones(64)
    torch.manual_seed(0)
    eager = [torch.nn.functional.dropout(x) for _ in range(2)]
    torch.manual_seed(0)
    graph, noise = captured(lambda: torch.nn.functional.dropout(x))
    for expected in eager:
        graph.replay()
        assert torch.equal(noise, expected)


def test_memory_is_nan_before_it_is_written():
    assert torch.empty(3).isnan().all()


def test_a_replay_of_released_memory_is_refused():
    tensors = [torch.ones(3)]
    graph, _ = captured(lambda: ops.relu(*tensors))
    tensors.clear()
    with pytest.raises(RuntimeError, match="a replay reaches for released memory"):
        graph.replay()


def test_graphs_share_the_memory_of_their_pool():
    x, pool = torch.ones(300), torch.cuda.graph_pool_handle()
    first, y = captured(lambda: ops.relu(x), pool=pool)
    second, z = captured(lambda: ops.tanh(x), pool=pool)
    assert sum(segment["total_size"] for segment in torch.cuda.memory_snapshot(pool)) == 2 * 1536
    address = y.data_ptr()
    del y
    third, again = captured(lambda: ops.sigmoid(x), pool=pool)
    assert again.data_ptr() == address
    for graph in (first, second, third):
        graph.replay()
    assert torch.equal(z, x.tanh())
    assert torch.equal(again, x.sigmoid())


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("call", [torch.add, torch.matmul, lambda x, y: torch.stack([x, y])])
def test_tensors_of_two_devices_are_refused(call, device):
    with pytest.raises(RuntimeError, match="on the same device"):
        call(torch.ones(2, 2), torch.ones(2, 2, device=device))


def test_launches_are_on_the_device_and_the_stream_of_their_tensors():
    x, stream = torch.ones(3, device="cuda:1"), torch.cuda.Stream("cuda:1")
    torch.ops.scratchcuda.relu(x)
    with torch.cuda.stream(stream):
        assert torch.cuda.current_device() == 1
        torch.ops.scratchcuda.relu(x)
    assert torch.cuda.current_device() == 0


def test_waits_can_be_counted():
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz"):
            torch.ones(3).sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_failed_capture_leaves_the_stream_that_was():
    before = torch.cuda.current_stream()
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        capture(lambda: x.sum().item(), torch.cuda.Stream())
    assert torch.cuda.current_stream() == before


@pytest.fixture
def clock():
    """No time means anything here, so it takes few."""
    clock = DeviceClock(torch.device("cuda"), 2)
    assert clock.flush.is_cuda
    assert clock.clean.is_cuda
    clock.flush, clock.clean = clock.flush[:1], clock.clean[:1]
    return clock


@pytest.fixture
def limits(clock):
    return ceilings.measure(clock, 1 << 10, 16)


@pytest.mark.parametrize("part", ["fits", "steps", "ops", "drop-in", "scaling"])
def test_benchmarks_run(part, clock, limits):
    works = {name: WORKLOADS[name] for name in ("mlp", "digits", "slr")}
    peers = GRAPH, SCRATCH, "scratchcuda.nn, converted", "scratchcuda, overlapping launches"
    options = rows.Options(clock, limits, works, peers=peers, dry=True)
    found = run({"dry": True}, rows.rows(options, [part]), seconds=60, file=None, show=lambda row: None)
    assert found["left out"] == []
    assert {row["label"]: row["error"] for row in found["rows"] if "error" in row} == {}
    for row in found["rows"]:
        assert all(peer["agrees"] for peer in row["peers"].values()), row
        if part in ("fits", "steps"):
            assert set(row["peers"]) == {TORCH, *peers}
            assert row["peers"][SCRATCH]["path"] == "graph plan"


@pytest.fixture
def scratchcuda(clock, limits, monkeypatch):
    """The command, which on a GPU would take a clock and ceilings of that size."""
    monkeypatch.setattr(ceilings, "of", lambda clock: limits)
    for module in ("scratchcuda.profiler.profile", "scratchcuda.bench.command"):
        monkeypatch.setattr(sys.modules[module], "clock_of", lambda device, samples: clock)

    def command(*arguments):
        found = CliRunner().invoke(app, [*arguments, "--device", "cuda"])
        assert found.exit_code == 0, found.output

    return command


@pytest.mark.parametrize("workload", ["mlp", "digits", "slr"])
def test_the_command_profiles(workload, scratchcuda, tmp_path):
    scratchcuda("profile", workload, "--batch", "8", "--no-compile", "--out", str(tmp_path))
    found = json.loads((tmp_path / "profile.json").read_text())
    (notice,) = found["notices"]
    assert notice.startswith("CUPTI has delivered no kernels")
    assert "scratchcuda::dense_update_" in {row["op"] for row in found["rows"]}
    assert (found["path"], found["conditions"]["device"]) == ("graph plan", "stand-in")


def test_the_command_measures(scratchcuda, tmp_path):
    file = tmp_path / "bench.json"
    scratchcuda("bench", "fits", "ops", "--workload", "slr", "--row", "slr", "--rounds", "2", "--json", str(file))
    found = json.loads(file.read_text())
    assert (found["device"], [row["label"] for row in found["rows"]]) == (
        "stand-in",
        ["slr float64 fit", "slr float64 fit with validation"],
    )
    for row in found["rows"]:
        assert row["peers"][GRAPH]["agrees"]
        assert row["peers"][SCRATCH]["path"] == "graph plan"
