"""What users expect of torch.nn and torch.optim, run for theirs and for ours side by side.

A behaviour is a function of the modules (torch.nn or scratchcuda.nn) and of the optimizer's class. Whatever it returns
has to be the same; a test of it names the ops of ours that have to run on the kernels.
"""

import torch

import scratchcuda

CROSS_ENTROPY = {"cross_entropy_value", "cross_entropy_backward"}
DENSE = {"dense", "dense_backward_input", "dense_backward_weights"}


def rand(*shape, **options):
    return torch.randn(shape, **{"dtype": torch.float64} | options)


X = rand(6, 5)
CLASSES = torch.tensor([0, 2, 1, 4, 2, 0])
ROWS = rand(6, 5).softmax(-1)


def ops_run(function):
    """What a function returns, and the names of our registered ops that it has run, on all threads."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = function()
    names = (event.key.split("::") for event in profile.key_averages())
    return result, {name[-1] for name in names if name[0].startswith("scratchcuda") and len(name) == 2}


def run(behaviour, nn, sgd):
    torch.manual_seed(0)
    torch.compiler.reset()
    return behaviour(nn, sgd)


def outcome(call):
    """What a call returns, or the class of what it raises."""
    try:
        return call()
    except Exception as error:
        return type(error)


def assert_same(ours, theirs):
    """Numbers agree but for a few roundings, of their dtype, of short sums of about 1; all else is equal."""
    if isinstance(theirs, torch.Tensor):
        assert (ours.dtype, ours.requires_grad) == (theirs.dtype, theirs.requires_grad)
        inexact = ours.is_floating_point() or ours.is_complex()
        unit = 16 * torch.finfo(ours.dtype).eps if inexact else 0
        torch.testing.assert_close(ours, theirs, rtol=unit, atol=unit, equal_nan=True)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        assert_same(list(ours.values()), list(theirs.values()))
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


def assert_as_torch(behaviour, kernels, backend, optimizer="SGD"):
    theirs = run(behaviour, torch.nn, getattr(torch.optim, optimizer))
    ours, served = ops_run(lambda: run(behaviour, scratchcuda.nn, getattr(scratchcuda.optim, optimizer)))
    assert_same(ours, theirs)
    assert served == (set() if backend == "tensor" else set(kernels))


def as_torch(*kernels):
    """Makes a test of a behaviour, in which kernels have to run the ops of these names."""

    def make(behaviour):
        def test(backend):
            assert_as_torch(behaviour, kernels, backend)

        return test

    return make


def gradients(outputs, *tensors):
    """By a gradient that is neither contiguous nor the same everywhere."""
    seed = rand(*outputs.shape[::-1], dtype=outputs.dtype).permute(*reversed(range(outputs.dim())))
    return torch.autograd.grad(outputs, tensors, seed, allow_unused=True)


def network(nn, activation="Tanh"):
    return nn.Sequential(nn.Linear(5, 4), getattr(nn, activation)(), nn.Linear(4, 3)).double()


def loss_and_gradients(net, x):
    loss = net(x).square().mean()
    return [loss, torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])]
