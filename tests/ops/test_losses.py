"""The elementwise losses: all that is tested of one follows from its entry. And losses as training steps take them."""

import math

import pytest
import torch
from cases import rand
from kernels import (
    LAYOUTS,
    SPECIAL,
    assert_same_bits,
    by_dtype,
    check,
    far,
    is_nan,
    kernel,
    laid_out,
    launched,
    not_mergeable,
    of_kernels,
)
from loss_cases import cases_of, options_of, predictions, weights_of
from oracle import assert_right, same
from torch.nn import functional

from scratchcuda import ops
from scratchcuda.ops._losses import LOSSES, REDUCTIONS
from scratchcuda.ops._registry import twins

TRAINED = [entry for entry in LOSSES.values() if entry.compare]
NAMES = [entry.name for entry in TRAINED]
by_loss = pytest.mark.parametrize("entry", LOSSES.values(), ids=lambda entry: entry.name)

CASES = {name: case for entry in LOSSES.values() for name, case in cases_of(entry).items()}


@pytest.mark.parametrize("step_", [ops.mse_step_, ops.cross_entropy_step_])
def test_a_step_beyond_the_losses_is_counted_alone(step_):
    losses, step = rand(3), torch.tensor(3)
    before = losses.clone()
    step_(rand(4, 3), rand(4, 3).softmax(-1), losses, step)
    same(losses, before)
    assert step == 4
    step_(rand(4, 3), rand(4, 3).softmax(-1), losses.view(3, 1).expand(3, 2)[:, 0], step.fill_(1))
    assert (losses == before).tolist() == [True, False, True]


@pytest.mark.parametrize("by_class", [True, False])
def test_losses_of_empty_batches_as_torch(by_class):
    targets = torch.zeros(0, dtype=torch.long) if by_class else torch.zeros(0, 4)
    loss, gradient = ops.cross_entropy(torch.zeros(0, 4), targets)
    assert loss.isnan()
    assert functional.cross_entropy(torch.zeros(0, 4), targets).isnan()
    assert gradient.shape == (0, 4)
    assert ops.mse(torch.zeros(0, 4), torch.zeros(0, 4))[0].isnan()


def check_all(entry, p, t, weights=(), reductions=REDUCTIONS):
    """Its ops, for each reduction."""
    for reduction in reductions:
        options = options_of(entry, reduction, weights)
        grad = rand(*(p.shape if reduction == "none" else ()), dtype=p.dtype)
        check(f"{entry.name}_value", (p, t, *options))
        check(f"{entry.name}_backward", (grad, p, t, *options))
    if entry.compare:
        check(entry.name, (p, t, *options_of(entry)[len(entry.weights) : -1]))


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 9, 511, 1025, 8192, 8193])
def test_losses(size, layout, dtype):
    """Sizes around those of an access of 16 bytes, of a round of a block, and of a second block."""
    for i, entry in enumerate(LOSSES.values()):
        if size < 2000 or i == size % len(LOSSES):  # long ones in turn, as all are taken and summed alike
            p, t = (laid_out(predictions(entry, size, dtype=dtype), layout) for _ in range(2))
            check_all(entry, p, t)
    check("mse", (laid_out(rand(3, size // 3 + 1, dtype=dtype), layout), rand(3, size // 3 + 1, dtype=dtype)))


@of_kernels
@by_dtype
@by_loss
def test_losses_weights_that_broadcast(entry, dtype):
    """And a gradient from above that is expanded, or of strides, and no dimensions at all."""
    p, t = predictions(entry, 5, 8, dtype=dtype), predictions(entry, 5, 8, dtype=dtype)
    for shape in ((), (8,), (5, 1), (5, 8), (1, 8)):
        for only in range(len(entry.weights) + 1):
            weights = [w if i != only else None for i, w in enumerate(weights_of(entry, shape, dtype))]
            check_all(entry, p, t, weights)
    scalar = predictions(entry, dtype=dtype)
    check_all(entry, scalar, scalar + 0.25, weights_of(entry, (), dtype))
    options = options_of(entry, "none")
    for grad in (rand(dtype=dtype).expand(5, 8), rand(8, dtype=dtype).expand(5, 8), rand(8, 5, dtype=dtype).T):
        check(f"{entry.name}_backward", (grad, p, t, *options))


@of_kernels
@by_dtype
@by_loss
def test_losses_special_values(entry, dtype):
    """NaN and infinities, what saturates, kinks, what is no probability; each by itself: a norm would hide some."""
    largest = torch.finfo(dtype).max
    places = [0.0, -0.0, 1.0, 0.5, 1.5, -0.5, 1 - 2**-8, 1e-6, 5e-324, math.nan]
    places += [] if entry.of_probabilities else [*SPECIAL, largest, -largest, 1.25, 0.0 - 1.25]
    for p in places:
        for t in (0.0, 1.0, *([-0.5] if entry.of_probabilities else [])):
            pair = [torch.tensor(v, dtype=torch.float64).to(dtype) for v in (p, t)]
            check_all(entry, *pair, reductions=["mean"])  # of one, all are the same
            if entry.weights and not entry.of_probabilities and math.isfinite(p):
                assert kernel(f"{entry.name}_value", *pair).isfinite()
                assert kernel(f"{entry.name}_backward", torch.ones((), dtype=dtype), *pair).isfinite()
    for shape in ((0,), (3, 0)):
        nothing = torch.zeros(shape, dtype=dtype)
        is_nan(kernel(f"{entry.name}_value", nothing, nothing), f"{entry.name}, mean of nothing")
        total = kernel(f"{entry.name}_value", nothing, nothing, *options_of(entry, "sum"))
        same(total, torch.zeros((), dtype=dtype), f"{entry.name}, sum of nothing")
        gradient = kernel(f"{entry.name}_backward", total, nothing, nothing)
        same([gradient, kernel(f"{entry.name}_value", nothing, nothing, *options_of(entry, "none"))], [nothing] * 2)


@pytest.mark.backends("tensor", "emulator")
@pytest.mark.parametrize("pair", [(1.5, 0.5), (0.5, -0.5)])
def test_losses_of_what_is_no_probability(pair, backend):
    """On the CPU torch's error; the kernels say NaN."""
    p, t = torch.tensor(pair, dtype=torch.float64)
    if backend == "tensor":
        with pytest.raises(RuntimeError, match="between 0 and 1"):
            ops.binary_cross_entropy_value(p, t)
    else:
        assert ops.binary_cross_entropy_value(p, t).isnan()


@of_kernels
@by_dtype
def test_losses_beta_of_none(dtype):
    """SmoothL1 is L1 then, at its kink too."""
    p, t = rand(6, dtype=dtype), rand(6, dtype=dtype)
    p[0] = t[0]
    for reduction in REDUCTIONS:
        ours, theirs = (
            kernel(f"{name}_value", p, t, *of) for name, of in (("smooth_l1", (0.0, reduction)), ("l1", (reduction,)))
        )
        same(ours, theirs, "smooth_l1, value", rtol=4 * torch.finfo(dtype).eps)
    grad = torch.ones((), dtype=dtype)
    same(kernel("smooth_l1_backward", grad, p, t, 0.0), kernel("l1_backward", grad, p, t))


@of_kernels
def test_losses_scaled_gradients_of_16_bits():
    """The gradient from above reaches them before they are rounded: no underflow."""
    for entry in LOSSES.values():
        p, t = predictions(entry, 300, 500, dtype=torch.float16), predictions(entry, 300, 500, dtype=torch.float16)
        check(f"{entry.name}_backward", (torch.tensor(16384.0, dtype=torch.float16), p, t, *options_of(entry)))
        assert (kernel(f"{entry.name}_backward", torch.tensor(16384.0).half(), p, t) == 0).sum() < 1000


@of_kernels
@pytest.mark.backends("emulator")
def test_losses_are_summed_by_as_many_blocks_as_the_shape_says():
    for name, args, blocks in (
        ("mse", (rand(8192), rand(8192)), [1]),
        ("mse", (rand(8193), rand(8193)), [2, 1]),
        ("mse_value", (rand(8193), rand(8193)), [2, 1]),
        ("mse_value", (rand(8193), rand(8193), "none"), [9]),
        ("mse_backward", (rand(), rand(1025), rand(1025)), [2]),
        ("mse_backward", (rand(0), rand(0), rand(0), "none"), []),
    ):
        assert [launch.grid for launch in launched(name, *args)] == [(number, 1, 1) for number in blocks]


@of_kernels
@pytest.mark.backends("emulator")
def test_losses_bits_for_any_order_of_threads_and_blocks():
    assert_same_bits((("mse", (rand(9000), rand(9000))), ("l1_value", (rand(9000), rand(9000), "sum"))))


@pytest.mark.backends("tensor")
@by_dtype
@by_loss
def test_twins_of_losses_are_right(entry, dtype):
    """As the kernels are."""
    p, t = predictions(entry, 7, 5, dtype=dtype), predictions(entry, 7, 5, dtype=dtype)
    for reduction in REDUCTIONS:
        options = options_of(entry, reduction, weights_of(entry, (5,), dtype))
        grad = rand(*(p.shape if reduction == "none" else ()), dtype=dtype)
        for name, args in ((f"{entry.name}_value", (p, t)), (f"{entry.name}_backward", (grad, p, t))):
            assert_right(name, (*args, *options), [getattr(twins, name)(*args, *options)])


@pytest.mark.backends("tensor")
@pytest.mark.parametrize("entry", TRAINED, ids=NAMES)
def test_losses_calls_of_the_tensor_plan(entry):
    """Into delta, whose padding stays 0, and the loss; no memory is asked for."""
    parameters, columns = options_of(entry)[len(entry.weights) : -1], 16
    prediction, y, delta, loss = 3 * rand(3, columns)[:, :13], rand(3, 13).sigmoid(), torch.zeros(3, columns), rand()
    delta = delta.double()
    prediction[0, 0], prediction[1, 1] = 700, -700
    call = entry.compare(prediction, delta, *parameters)
    call(y, loss)
    expected, gradient = getattr(ops, entry.name)(prediction, y, *parameters)
    close = {"rtol": 1e-14, "atol": 1e-14}  # some tens of roundings
    torch.testing.assert_close(loss / y.numel(), expected, **close)
    torch.testing.assert_close(delta[:, :13] * entry.factor / y.numel(), gradient, **close)
    assert (delta[:, 13:] == 0).all()


@of_kernels
@by_dtype
@pytest.mark.parametrize("name", [*NAMES, "cross_entropy"])
def test_losses_of_a_step(name, dtype):
    """The same loss and gradient, whether one block sums it or several; written to its place alone."""
    for rows in (30, 3000):
        args = rand(rows, 4, dtype=dtype), rand(rows, 4, dtype=dtype).softmax(1)
        loss, gradient = kernel(name, *args)
        for stride, place in ((1, 0), (3, 2), (3, 5), (1, 7)):
            losses, step = rand(5 * stride, dtype=dtype), torch.tensor(place)
            expected = losses.clone()
            expected[::stride][place : place + 1] = loss
            same(kernel(f"{name}_step_", *args, losses[::stride], step), gradient, f"{name}_step_, gradient")
            same(losses, expected, f"{name}_step_, losses")
            same(step, torch.tensor(place + 1), f"{name}_step_, step")


@of_kernels
def test_losses_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    check("mse", (x, x.flip(1)))
    check("l1_value", (x, x.flip(1), "none"))
    check("l1_backward", (rand(3, 8).half(), x, x.flip(1), "none"))


@of_kernels
def test_losses_of_more_than_16_dimensions_that_do_not_merge():
    """They are copied first."""
    x = not_mergeable()
    check("l1_value", (x, x + 1, "none"))
    check("l1_backward", (x, x, x + 1, "none"))
