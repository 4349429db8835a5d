"""The update of SGD."""

import math

import numpy as np
import pytest
import torch
from cases import Case, Cost, K, N, Refused, rand
from kernels import LAYOUTS, far, kernel, of_kernels
from oracle import assert_within, same, sum_type, wide
from updates import check_turns, gradients, launches, like, listed, not_merging, numbered, odd_orders, refused_rates
from updates import update as updated

from scratchcuda import ops

OPTIONS = ("momentum", "dampening", "nesterov", "maximize", "is_first_step")


def sgd(params, grads, buffers=(), **options):
    """Arguments of the op."""
    rates = options.pop("rates", ())
    named = dict.fromkeys(("lr", "weight_decay", *OPTIONS[:2]), 0.0) | dict.fromkeys(OPTIONS[2:], False)
    return params, grads, list(buffers), *(named | {"lr": 0.1} | options).values(), *rates


def public(params, grads, buffers, lr, weight_decay, *options):
    named = dict(zip((*OPTIONS, "rates", "turn"), options, strict=False))
    return ops.sgd_update_(params, grads, lr, weight_decay, momentum_buffers=buffers, **named)


def theirs(params, grads, buffers, lr, weight_decay, *options):
    named = dict(zip(OPTIONS[:4], options, strict=False))
    optimizer = torch.optim.SGD(params, lr, weight_decay=weight_decay, **named)
    for p, g, m in zip(params, grads, buffers, strict=True):
        p.grad, optimizer.state[p]["momentum_buffer"] = g, m
    optimizer.step()
    return (*params, *(optimizer.state[p]["momentum_buffer"] for p in params))


CASES = {
    "sgd_update_": Case(
        arguments=lambda m: (*([rand(m, 3), rand(3)] for _ in range(3)), *(0.1, 0.01, 0.9, 0.5, False, True, False)),
        theirs=theirs,
        written=(0, 2),
        public=public,
        costs=[
            Cost(lambda t: sgd([t.w, t.b], [t.dw, t.db]), 0, 2 * (K * N + N), 3 * (K * N + N)),
            Cost(
                lambda t: sgd(
                    [t.w], [t.dw], [t.dw.clone()], weight_decay=0.5, momentum=0.9, nesterov=True, maximize=True
                ),
                *(0, 9 * K * N, 5 * K * N),
            ),
            Cost(
                lambda t: sgd([t.w], [t.dw], [t.dw.clone()], momentum=0.9, is_first_step=True),
                *(0, 2 * K * N, 4 * K * N),
            ),
        ],
        refused=[
            Refused(lambda t: sgd([t.w], []), ValueError, "grads has 0 tensors, expected 1 as params"),
            Refused(
                lambda t: sgd([t.w, t.b], [t.w, t.w]), ValueError, r"grads\[1\] has shape \(5, 3\), expected \(3,\)"
            ),
            Refused(
                lambda t: sgd([t.w, t.b], [t.w, t.b.half()]),
                TypeError,
                r"grads\[1\] has dtype torch.float16, expected torch.float64 as",
            ),
            Refused(
                lambda t: sgd([t.w, t.b.to("meta")], [t.w, t.b]),
                ValueError,
                r"params\[1\] is on device meta, exp",
                None,
            ),
            Refused(lambda t: sgd([t.w, t.b.long()], [t.w, t.b]), TypeError, r"params\[1\] has dtype torch.int64"),
            Refused(lambda t: sgd([t.w, t.w], [t.dw, t.dw]), ValueError, r"params\[1\] shares memory with params\[0\]"),
            Refused(
                lambda t: sgd([t.w, t.b, t.w], [t.dw, t.db, t.dw]),
                ValueError,
                r"params\[2\] shares memory with params\[0\]",
                None,
            ),
            Refused(
                lambda t: sgd([t.w, t.w.view(3, 5)], [t.dw, t.dw.view(3, 5)]), ValueError, "shares memory with", None
            ),
            Refused(
                lambda t: sgd([t.w.view(-1)[:9]], [t.w.view(-1)[4:13]]),
                ValueError,
                "grads shares memory with params",
                None,
            ),
            Refused(
                lambda t: sgd([t.w], [t.w]),
                ValueError,
                "grads shares memory with params|params shares memory with grads",
                r"grads\[0\] shares memory with params\[0\]",
            ),
            Refused(lambda t: sgd([t.w], [t.dw], [t.dw], momentum=0.9), ValueError, "shares memory with", None),
            Refused(
                lambda t: sgd([t.w], [t.dw], [t.w], momentum=0.9),
                ValueError,
                "shares memory with",
                r"momentum_buffers\[0\] shares memory with params\[0\]",
            ),
            Refused(lambda t: sgd([t.b[:1].expand(3)], [t.b]), ValueError, r"params\[0\] is expanded", None),
            Refused(
                lambda t: sgd([t.w], [t.dw], momentum=0.9),
                ValueError,
                "momentum_buffers has 0 tensors, expected 1 as params",
            ),
            Refused(
                lambda t: sgd([t.b], [t.b], [t.b[:1].expand(3)], momentum=0.9),
                ValueError,
                r"momentum_buffers\[0\] is expanded",
                None,
            ),
            Refused(
                lambda t: sgd([t.w], [t.dw], nesterov=True),
                ValueError,
                "nesterov needs momentum and no dampening, got momentum 0",
            ),
            Refused(lambda t: sgd([t.w], [t.w], momentum=-1), ValueError, "momentum is -1.0, expected", None),
            Refused(
                lambda t: sgd([t.w], [t.w], dampening=math.inf), ValueError, "dampening is inf, expected a finite", None
            ),
            Refused(
                lambda t: sgd([t.w], [t.dw], dampening=math.nan),
                ValueError,
                "dampening is nan, expected a finite number",
            ),
            Refused(lambda t: sgd([t.w], [t.w], dampening="0"), TypeError, "dampening is '0'", None),
            Refused(lambda t: sgd([t.w], [t.w], lr=math.nan), ValueError, "lr is nan, expected a finite number", None),
            Refused(lambda t: sgd([t.w], [t.w], weight_decay=-1), ValueError, "weight_decay is -1.0, expected", None),
            Refused(
                lambda t: sgd([t.w], [t.w], lr=torch.ones(2)),
                TypeError,
                r"lr is tensor\(\[1., 1.\].*Tensor\), expected",
                None,
            ),
            Refused(lambda t: sgd(None, [t.w]), TypeError, "params is NoneType, expected a sequence of tensors", None),
            *(
                Refused(lambda t, name=name: sgd([t.w], [t.w], **{name: "True"}), TypeError, f"{name} is 'True'", None)
                for name in OPTIONS[2:]
            ),
            *refused_rates(lambda t, *rates: sgd([t.w], [t.dw], rates=rates), 1),
        ],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "options",
    [(0.0, 0.0, False, False), (0.9, 0.0, True, False), (0.9, 0.5, False, True), (0.5, -0.5, False, False)],
    ids=["plain", "nesterov", "maximize", "negative dampening"],
)
def test_sgd_update_as_torch_optim(options, dtype):
    """Three steps, the first of which finds no momentum yet, on tensors of two dtypes."""
    shapes = [(3, 5), (7,), (), (0, 2)]
    ours = [rand(*shape, dtype=dtype) for shape in shapes] + [rand(4)]
    theirs = [p.clone() for p in ours]
    optimizer = torch.optim.SGD(theirs, 0.1, 0.0, weight_decay=0.01, foreach=False)
    optimizer.param_groups[0].update(zip(OPTIONS, options, strict=False))
    buffers = [torch.full_like(p, math.nan) for p in ours]
    for step in range(3):
        grads = [torch.randn_like(p) for p in ours]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        public(ours, grads, buffers, 0.1, 0.01, *options, step == 0)
    for p, expected in zip(ours, theirs, strict=True):
        # A few roundings a step of terms of about 1.
        unit = 16 * torch.finfo(p.dtype).eps
        torch.testing.assert_close(p, expected, rtol=unit, atol=unit)


def test_sgd_update_of_views_that_lie_between_one_another():
    """Columns of one matrix share a range of memory, but no element."""
    both = rand(5, 6)
    expected = both - 0.1
    ops.sgd_update_([both[:, :2], both[:, 2:]], [torch.ones(5, 2).double(), torch.ones(5, 4).double()], 0.1)
    torch.testing.assert_close(both, expected)


def test_twin_takes_its_rate_from_the_device():
    """As with that number, but for a rounding of the product in 16 bits; a turn that is not there changes nothing."""
    rates = torch.tensor([[0.5], [0.25]], dtype=torch.float64)
    for dtype in (torch.float64, torch.bfloat16):
        for turn, lr in ((1, 0.5), (2, 0.25), (0, None), (3, None)):
            p, m, g = (rand(5, dtype=dtype) for _ in range(3))
            q, n = p.clone(), m.clone()
            momentum = {"momentum": 0.9}
            ops.sgd_update_([p], [g], 9.0, momentum_buffers=[m], rates=rates, turn=torch.tensor(turn), **momentum)
            if lr:
                ops.sgd_update_([q], [g], lr, momentum_buffers=[n], **momentum)
            torch.testing.assert_close([p, m], [q, n], rtol=0, atol=4 * torch.finfo(dtype).eps if lr else 0)


def test_sgd_update_leaves_buffers_alone_that_it_does_not_use():
    w, unused = rand(3), rand(3)
    version = unused._version
    ops.sgd_update_([w], [rand(3)], 0.1, momentum_buffers=[unused])
    ops.sgd_update_([w], [rand(3)], 0.1, momentum_buffers=[None])
    assert unused._version == version
    ops.sgd_update_([], [], 0.1)


#: weight_decay, momentum, dampening, nesterov, maximize
SGD = {
    "plain": (0.0, 0.0, 0.0, False, False),
    "decay": (0.1, 0.0, 0.0, False, True),
    "momentum": (0.0, 0.9, 0.5, False, False),
    "nesterov": (0.1, 0.9, 0.0, True, False),
    "all but": (0.1, 0.9, 0.5, False, True),
}


def check_sgd(params, grads, buffers, options, is_first_step):
    """One step, against its formula in extended precision: a rounding of each result, and one of each term."""
    weight_decay, momentum, dampening, nesterov, maximize = options
    before = [[wide(tensor) for tensor in tensors] for tensors in (params, grads, buffers)]
    updated("sgd_update_", (params, buffers), params, grads, buffers, 0.3, *options, is_first_step)
    for i, param in enumerate(params):
        p, g = before[0][i], before[1][i] * (-1 if maximize else 1)
        g, size = g + weight_decay * p, abs(g) + weight_decay * abs(p)
        unit, sum_unit = torch.finfo(param.dtype).eps, np.finfo(sum_type(param.dtype)).eps
        if momentum:
            m = before[2][i]
            new = g if is_first_step else momentum * m + (1 - dampening) * g
            size = size + (0 if is_first_step else abs(momentum * m))
            assert_within(unit * abs(new) + 3 * sum_unit * size, buffers[i], new, f"sgd_update_, momentum {i}")
            g, size = (g + momentum * new, 2 * size) if nesterov else (new, size)
        expected = p - 0.3 * g
        limit = unit * abs(expected) + 6 * sum_unit * (abs(p) + 0.3 * size)
        assert_within(limit, param, expected, f"sgd_update_, parameter {i}")


@of_kernels
@pytest.mark.parametrize("options", SGD)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sgd(layout, options):
    """Many sizes and all dtypes in one launch, their gradients and momenta in layouts of their own."""
    params = listed(layout)
    grads, buffers = gradients(params), [like(p, layout) for p in params]
    for is_first_step in (True, False):
        check_sgd(params, grads, buffers if SGD[options][1] else [], SGD[options], is_first_step)
    assert launches("sgd_update_", params, grads, buffers, 0.3, *SGD[options], False) in (1, None)


@of_kernels
@pytest.mark.parametrize("count", [1, 31, 32, 33, 255, 256, 257])
def test_sgd_of_many_tensors(count):
    params = numbered(count)
    grads = gradients(params)
    check_sgd(params, grads, [], SGD["decay"], False)
    assert launches("sgd_update_", params, grads, [], 0.3, *SGD["plain"], False) in (2 if count > 256 else 1, None)
    assert not launches("sgd_update_", [rand(0)] * 3, [rand(0)] * 3, [], 0.3, *SGD["plain"], False)


@of_kernels
def test_sgd_of_layouts_that_do_not_merge():
    params, grads = odd_orders()
    check_sgd(params, grads, [rand(3, 3, 3, 3) for _ in params], SGD["nesterov"], False)
    not_merging("sgd_update_", lambda params, grads: sgd(params, grads))


@of_kernels
def test_sgd_takes_its_rate_from_the_device():
    params = numbered(5)
    grads, rates = gradients(params), torch.tensor([[0.5], [0.0], [0.25]], dtype=torch.float64)

    def args(lists, lr=9.0):
        return sgd(lists[0], grads, lists[1], lr=lr, momentum=0.9, nesterov=True)

    written = [params, gradients(params)]
    check_turns("sgd_update_", args, written, rates, lambda lists, row: args(lists, rates[row].item()))


@of_kernels
def test_sgd_of_an_infinite_parameter_and_offsets_beyond_32_bits():
    p = torch.tensor([math.inf, -math.inf, 1.0])
    kernel("sgd_update_", [p], [torch.zeros(3)], [], 0.1, *SGD["plain"], False)
    same(p, torch.tensor([math.inf, -math.inf, 1.0]), "sgd_update_")
    x = far(3, 8).copy_(rand(3, 8))
    kernel("sgd_update_", [x], [x.clone()], [], 0.5, *SGD["plain"], False)
    kernel("sgd_update_", [x], [x.clone()], [], 1.0, *SGD["plain"], False)
    same(x, torch.zeros(3, 8, dtype=x.dtype), "sgd_update_")
