"""What only a GPU can show of the CUDA kernels. Without one, all of it is skipped; all other tests run there too."""

import math
import warnings

import pytest
import torch
from cases import cases, cast, outputs
from oracle import same
from trajectories import mlp

import scratchcuda
from scratchcuda import CrossEntropy, Softmax, Tanh, ops
from scratchcuda.compare import WORKLOADS, Pair
from scratchcuda.ops import _emulator, _registry

DEVICE = "cuda"
CAN_OVERLAP = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
pytestmark = pytest.mark.backends("kernels")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def on(device, value):
    if isinstance(value, list | tuple):
        return [on(device, v) for v in value]
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value


def results(raw, name, args):
    """What the op returns, or of an op in place what became of its arguments."""
    return outputs(name, getattr(raw, name)(*args), args)


def tensors(args):
    flat = [v for arg in args for v in (arg if isinstance(arg, list) else [arg])]
    return [v for v in flat if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 33, 1500])
@pytest.mark.parametrize("name", _registry.OPS)
def test_gpu_minus_emulator(name, m, dtype, record_property):
    """They differ by contracted products, and by the last bits of exp, tanh and log."""
    args = [cast(arg, dtype) for arg in cases()[name].arguments(m)]
    emulated = results(_emulator.current().ops, name, on("cpu", args))
    computed = results(torch.ops.scratchcuda, name, on(DEVICE, args))
    differences = []
    for theirs, ours in zip(emulated, computed, strict=True):
        assert (ours.device.type, ours.dtype, ours.stride()) == (DEVICE, theirs.dtype, theirs.stride())
        differences.append(((ours.cpu().double() - theirs.double()).norm() / theirs.double().norm()).item())
    for key, value in (("kernel", name), ("dtype", str(dtype)), ("difference", max(differences))):
        record_property(key, value)
    for difference in differences:
        # A few roundings on each of 1,500 summed terms, which are of both signs.
        assert difference <= 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize("tile", _emulator.TILES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_in_every_tile(dtype, tile):
    from scratchcuda import _C

    x, w, b = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in ((300, 77), (77, 150), (150,)))
    delta, controls = torch.randn(300, 150, dtype=torch.float64).to(dtype), _emulator.current().controls
    calls = {"dense": (x, w.T.contiguous().T, b, "tanh"), "dense_backward_input": (delta, w)}
    calls["dense_backward_weights"] = (delta, x.T.contiguous().T)
    try:
        _C.set_tile(_emulator.TILES[tile])
        controls.scratchcuda_set_tile(_emulator.TILES[tile])
        for name, args in calls.items():
            emulated = results(_emulator.current().ops, name, on("cpu", args))
            for theirs, ours in zip(emulated, results(torch.ops.scratchcuda, name, on(DEVICE, args)), strict=True):
                difference = (ours.cpu().double() - theirs.double()).norm() / theirs.double().norm()
                assert difference <= 32 * torch.finfo(dtype).eps
    finally:
        _C.set_tile(-1)
        controls.scratchcuda_set_tile(-1)


@pytest.mark.parametrize("name", _registry.OPS)
def test_ops_run_on_the_current_stream(name):
    """Their arguments come late, on a stream of their own: on another one the op would be too early."""
    args = cases()[name].arguments(33)
    expected = results(torch.ops.scratchcuda, name, on(DEVICE, args))
    late = on(DEVICE, args)
    sources = [tensor.clone() for tensor in tensors(late)]
    for tensor in tensors(late):
        tensor.fill_(math.nan if tensor.is_floating_point() else 0)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # clock cycles: some 50 ms
        for tensor, source in zip(tensors(late), sources, strict=True):
            tensor.copy_(source)
        found = results(torch.ops.scratchcuda, name, late)
    side.synchronize()
    same(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("name", _registry.OPS)
def test_ops_run_on_the_device_of_their_tensors(name):
    args = cases()[name].arguments(33)
    expected = results(torch.ops.scratchcuda, name, on("cuda:0", args))
    found = results(torch.ops.scratchcuda, name, on("cuda:1", args))
    assert torch.cuda.current_device() == 0
    assert {tensor.device for tensor in found} == {torch.device("cuda:1")}
    same(on("cpu", found), on("cpu", expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_a_fit_on_another_device_than_the_current_one():
    found = []
    for device in ("cuda:0", "cuda:1"):
        torch.manual_seed(0)
        model, data = mlp([5, 16, 3], Tanh), torch.randn(40, 8, dtype=torch.float64).to(device)
        history = model.to(device).fit(data[:, :5], data[:, 5:], 3, 0.1, 16, verbose=False)
        assert history.path == "graph plan"
        found.append([*history.step_loss, *(parameter.cpu() for parameter in model.state_dict().values())])
    same(*found)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", _registry.OPS)
def test_the_same_bits_every_time(name):
    args = cases()[name].arguments(1500)
    first, second = (results(torch.ops.scratchcuda, name, on(DEVICE, args)) for _ in range(2))
    same(first, second)


@pytest.mark.parametrize("classes", [False, True])
def test_a_step_is_captured_in_a_cuda_graph(classes):
    last, loss_f = (Softmax, CrossEntropy(True)) if classes else (Tanh, None)
    model = mlp([5, 16, 3], Tanh, last, loss_f, dtype=torch.float64).to(DEVICE)
    x = torch.randn(40, 5, dtype=torch.float64, device=DEVICE)
    y = torch.randint(3, (40,), device=DEVICE) if classes else torch.randn(40, 3, dtype=torch.float64, device=DEVICE)
    start = {name: parameter.clone() for name, parameter in model.state_dict().items()}

    def step():
        loss, delta = model._loss_and_gradient(model.__forward__(x), y)
        model._backpropagate(delta, 0.1)
        return loss

    eager = [step().item() for _ in range(3)]
    trained = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    model.load_state_dict(start)
    graph, captured = torch.cuda.CUDAGraph(), None
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = step()
    replayed = []
    for _ in range(3):
        graph.replay()
        replayed.append(captured.item())
    assert replayed == eager
    assert replayed[0] != replayed[2]
    same(model.state_dict(), trained)


@pytest.mark.parametrize("workload", ["slr", "mlp", "digits"])
def test_trajectories(workload, usual_path):
    """Losses by epoch, predictions and parameters are torch.nn's."""
    pair = Pair(WORKLOADS[workload], DEVICE, torch.float64, 0)
    options = 8, pair_options(workload).lr, pair_options(workload).batch_size
    theirs, ours = pair.fit_torch(*options), pair.fit_scratch(*options)
    assert ours.path == usual_path
    torch.testing.assert_close(ours.loss, theirs.train, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.valid_loss, theirs.valid, rtol=1e-12, atol=0)
    # The documents show 1e-16; the design's bound leaves room for other orders of summation.
    assert pair.prediction_mape() <= 1e-12
    assert all(value <= 1e-12 for layer in pair.layer_mapes() for value in layer.values())


def pair_options(workload):
    return WORKLOADS[workload]


@pytest.mark.parametrize("plan", [True, False])
def test_nothing_waits_for_the_gpu_within_an_epoch(plan):
    """However many steps an epoch has, the fit waits as often."""
    waits = []
    for batch_size in (20, 2):
        model = mlp([5, 16, 3], Tanh, Softmax, CrossEntropy(), dtype=torch.float32).to(DEVICE)
        x, y = torch.randn(40, 5, device=DEVICE), torch.randint(3, (40,), device=DEVICE)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model.fit(x, y, 2, 0.1, batch_size, plan=plan, verbose=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    assert waits[0] == waits[1] > 0


def test_a_graph_takes_the_memory_of_a_step():
    """Activations once, two gradients of activations, and what the losses share out; no gradient of weights."""
    sizes, m = [512, 2048, 1024, 10], 4096
    model = mlp(sizes, Tanh, dtype=torch.float32)
    x, y = torch.randn(2 * m, 512), torch.randn(2 * m, 10)
    history = model.fit(x, y, 1, 1e-3, m, verbose=False)
    fixed = 4 * m * (512 + 10) + 8 * 2 * m
    floats = m * (sum(sizes[1:]) + 2048 + 1024)
    assert history.path == "graph plan"
    # torch takes memory for graphs in blocks of 2 MiB, and large ones of 20 MiB.
    assert fixed < history.graph_bytes <= fixed + 4 * floats + 64 * 2**20


@pytest.mark.skipif(not CAN_OVERLAP, reason="this architecture has no programmatic dependent launch")
@pytest.mark.parametrize("workload", ["slr", "mlp", "digits"])
def test_launches_that_overlap_give_the_same_bits(workload):
    from scratchcuda import _C

    found, work = [], WORKLOADS[workload]
    for overlaps in (False, True):
        pair = Pair(work, DEVICE, torch.float64, 0)  # whose graphs are its own
        _C.set_overlap(overlaps)
        try:
            for _ in range(2):
                found.append(pair.fit_scratch(8, work.lr, work.batch_size).step_loss)
                found.append([parameter.clone() for parameter in pair.scratch.state_dict().values()])
                pair.reset()
        finally:
            _C.set_overlap(False)
    for losses, parameters in zip(found[::2], found[1::2], strict=True):
        assert losses == found[0]
        same(parameters, found[1])


def test_class_indices_that_are_none_make_nan_and_leave_the_device_alone():
    scores = torch.randn(4, 3, device=DEVICE)
    loss, gradient = ops.cross_entropy(scores, torch.tensor([0, 1, 3, 2], device=DEVICE))
    assert loss.isnan()
    assert gradient.isnan().all(1).tolist() == [False, False, True, False]
    assert ops.cross_entropy(scores, torch.tensor([0, 1, 2, 2], device=DEVICE))[0].isfinite()


def test_tensors_of_two_devices_are_refused():
    x, w, b = torch.randn(4, 5), torch.randn(5, 3, device="cpu"), torch.randn(3, device="cpu")
    with pytest.raises(ValueError, match="w is on device cpu, expected cuda:0 as x"):
        ops.dense(x, w, b)
    with pytest.raises(RuntimeError, match="w is on device cpu, expected cuda:0 as x"):
        torch.ops.scratchcuda.dense(x, w, b, "none")


def test_offsets_beyond_32_bits():
    x = torch.empty(2**31 + 8, dtype=torch.float16, device=DEVICE).as_strided((2, 8), (2**31, 1))
    x.copy_(torch.randn(2, 8))
    same(ops.relu(x), x.relu())
    ops.sgd_update_([x], [x.clone()], 1.0)
    assert not x.any()


def test_kernel_resources():
    from scratchcuda import _C

    found = _C.kernel_resources()
    assert {"matmul", "elementwise", "softmax_rows", "update_tensors"} <= {
        kernel["kernel"].partition("<")[0].rpartition("::")[2] for kernel in found
    }
    for kernel in found:
        assert 0 < kernel["registers"] <= 255, kernel
        assert (kernel["local_bytes"], kernel["blocks"] >= 1, 0 < kernel["occupancy"] <= 1) == (0, True, True), kernel


def test_a_forced_twin_and_the_kernels_agree():
    z = torch.randn(50, 7, dtype=torch.float64, device=DEVICE)
    with scratchcuda.use_backend("tensor"):
        expected = ops.softmax(z)
    torch.testing.assert_close(ops.softmax(z), expected)
