"""The updates of Adam and AdamW."""

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

OPTIONS = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled_weight_decay": False}
OPTIONS |= {"amsgrad": False, "maximize": False, "step": 1}
STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def adam(params, grads, *state, rates=(), **options):
    """Arguments of the op."""
    lists = [list(tensors) for tensors in (*state, (), (), ())[:3]]
    return params, grads, *lists, *(OPTIONS | options).values(), *rates


def public(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, lr, beta1, beta2, *options):
    named = dict(zip((*list(OPTIONS)[3:], "rates", "turn"), options, strict=False))
    lists = params, grads, exp_avgs, exp_avg_sqs
    return ops.adam_update_(*lists, lr, betas=(beta1, beta2), max_exp_avg_sqs=max_exp_avg_sqs, **named)


def theirs(params, grads, *given):
    *state, lr, beta1, beta2 = given[:6]
    named = dict(zip(list(OPTIONS)[3:], given[6:], strict=True))
    step = named.pop("step")
    optimizer = torch.optim.Adam(params, lr, (beta1, beta2), foreach=False, **named)
    for p, g, *of in zip(params, grads, *state, strict=True):
        p.grad = g
        optimizer.state[p] = {"step": torch.tensor(step - 1.0)} | dict(zip(STATE, of, strict=True))
    optimizer.step()
    return (*params, *(optimizer.state[p][name] for name in STATE for p in params))


def squares(*shape):
    return rand(*shape).square()


def call(t, **options):
    """Of one parameter, with its state."""
    state = [t.dw.clone()], [t.dw.square()], [t.dw.square()]
    return adam([t.w], [t.dw], *state[: 2 + options.get("amsgrad", False)], **options)


CASES = {
    "adam_update_": Case(
        arguments=lambda m: (
            *([make(m, 3), make(3)] for make in (rand, rand, rand, squares, squares)),
            *(OPTIONS | {"weight_decay": 0.1, "amsgrad": True, "maximize": True, "step": 3}).values(),
        ),
        theirs=theirs,
        written=(0, 2, 3, 4),
        public=public,
        costs=[
            Cost(call, 0, 13 * K * N, 7 * K * N),
            Cost(lambda t: call(t, weight_decay=0.1, amsgrad=True, maximize=True), 0, 17 * K * N, 9 * K * N),
            Cost(lambda t: call(t, weight_decay=0.1, decoupled_weight_decay=True), 0, 14 * K * N, 7 * K * N),
            Cost(  # it reads a row of the rates, and the turn
                lambda t: call(t, rates=(torch.ones(9, 3, dtype=torch.float64), torch.tensor(1))),
                *(0, 13 * K * N, 7 * K * N + 3, 8),
            ),
        ],
        refused=[
            Refused(lambda t: adam([t.w], []), ValueError, "grads has 0 tensors, expected 1 as params"),
            Refused(lambda t: adam([t.w], [t.dw]), ValueError, "exp_avgs has 0 tensors, expected 1 as params"),
            Refused(
                lambda t: adam([t.w], [t.dw], [t.w.float()]), TypeError, r"exp_avgs\[0\] has dtype torch.float32, exp"
            ),
            Refused(
                lambda t: adam([t.w], [t.dw], [t.w.clone()], [t.b]),
                ValueError,
                r"exp_avg_sqs\[0\] has shape \(3,\), expected \(5, 3\)",
            ),
            Refused(
                lambda t: adam([t.w], [t.dw], [t.w.clone()], [t.w[:1, :1].expand(5, 3)]),
                ValueError,
                r"exp_avg_sqs\[0\] is expanded",
            ),
            Refused(lambda t: adam([t.w], [t.dw], [t.w.clone()], [t.dw]), ValueError, "shares memory with"),
            Refused(
                lambda t: adam([t.w], [t.dw], [t.w.clone()], [t.w.clone()], amsgrad=True),
                ValueError,
                "max_exp_avg_sqs has 0 tensors, expected 1 as params",
            ),
            Refused(lambda t: adam([t.w.long()], [t.w]), TypeError, r"params\[0\] has dtype torch.int64"),
            Refused(
                lambda t: call(t, lr=-1.0), ValueError, "lr is -1.0, expected a finite", "lr is -1, expected a fin"
            ),
            Refused(lambda t: call(t, eps=math.nan), ValueError, "eps is nan, expected a finite number of at least 0"),
            Refused(lambda t: call(t, weight_decay=math.inf), ValueError, "weight_decay is inf, expected a finite"),
            Refused(
                lambda t: call(t, beta1=1.0),
                ValueError,
                r"betas\[0\] is 1.0, expected a number of at least 0 and less than 1",
                "beta1 is 1, expected a number of at least 0 and less than 1",
            ),
            Refused(
                lambda t: call(t, beta2=-0.1),
                ValueError,
                r"betas\[1\] is -0.1, expected a finite number of at least 0",
                "beta2 is -0.1, expected a number of at least 0 and less than 1",
            ),
            Refused(lambda t: call(t, step=0), ValueError, "step is 0, expected a positive integer"),
            Refused(lambda t: call(t, step=1.5), TypeError, "step is 1.5", None),
            *(
                Refused(lambda t, name=name: call(t, **{name: 1}), TypeError, f"{name} is 1 ", None)
                for name in ("decoupled_weight_decay", "amsgrad", "maximize")
            ),
            *refused_rates(lambda t, *rates: call(t, rates=rates), 3),
        ],
    ),
}


@pytest.mark.parametrize("betas", [0.9, (0.9,), None], ids=str)
def test_betas_are_two_numbers(betas):
    with pytest.raises(TypeError, match=r"betas is .*, expected two numbers"):
        ops.adam_update_([], [], [], [], 0.1, betas=betas, step=1)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_update_as_torch_optim(kind, amsgrad):
    """Twenty steps from the first, on tensors of two dtypes."""
    params = [*(rand(*shape).float() for shape in ((3, 5), (7,), (), (0, 2))), rand(4)]
    expected, first = [p.clone() for p in params], [p.clone() for p in params]
    optimizer = kind(expected, 0.05, weight_decay=0.1, amsgrad=amsgrad)
    state = [[torch.zeros_like(p) for p in params] for _ in STATE]
    decoupled = kind is torch.optim.AdamW
    for step in range(1, 21):
        grads = [torch.randn_like(p) for p in params]
        for p, g in zip(expected, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        options = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled, "amsgrad": amsgrad, "step": step}
        public(*adam(params, grads, *state, lr=0.05, **options))
    for p, q, start in zip(params, expected, first, strict=True):
        # A few roundings a step of parameters of about 1, and of steps of at most 0.05 by them.
        unit = 20 * 2 * torch.finfo(p.dtype).eps
        torch.testing.assert_close(p, q, rtol=unit, atol=unit)
        assert not p.numel() or (p - start).abs().max() > 0.05


def test_twin_takes_its_numbers_from_the_device():
    """As with those numbers, but for three roundings of each step; a turn that is not there changes nothing."""
    betas = OPTIONS["beta1"], OPTIONS["beta2"]
    rows = [[lr, 1 - betas[0] ** step, math.sqrt(1 - betas[1] ** step)] for step, lr in enumerate((0.5, 0.25), 1)]
    for turn in range(4):
        lists = [[make(5)] for make in (rand, rand, squares, squares)]
        others, grads = [[t.clone() for t in tensors] for tensors in lists], [rand(5)]
        options = {"amsgrad": True, "weight_decay": 0.1, "decoupled_weight_decay": True}
        rates = torch.tensor(rows, dtype=torch.float64), torch.tensor(turn)
        public(*adam(lists[0], grads, *lists[1:], lr=9.0, rates=rates, **options))
        if turn in (1, 2):
            public(*adam(others[0], grads, *others[1:], lr=rows[turn - 1][0], step=turn, **options))
        torch.testing.assert_close(lists, others, rtol=1e-15 if turn in (1, 2) else 0, atol=0)


ADAM = {
    "plain": {},
    "decay": {"weight_decay": 0.1, "maximize": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "step": 7},
    "amsgrad": {"amsgrad": True, "eps": 0.01, "step": 2},
    "heavy": {"beta1": 0.3, "beta2": 0.5, "amsgrad": True, "weight_decay": 0.1, "step": 1000},
}


def check_adam(params, grads, state, options):
    """One step, against its formula in extended precision: a rounding of each result, and one of each term."""
    of = OPTIONS | {"lr": 0.3} | options
    before = [[wide(tensor) for tensor in tensors] for tensors in (params, grads, *state)]
    args = adam(params, grads, *state, **of)
    updated("adam_update_", (params, *state), *args)
    beta1, beta2, decay, step = of["beta1"], of["beta2"], of["weight_decay"], of["step"]
    corrections = 1 - beta1**step, math.sqrt(1 - beta2**step)  # by definition, as torch's, in float64
    for i, param in enumerate(params):
        p, g, m, v, *u = (column[i] for column in before)
        unit, sum_unit = torch.finfo(param.dtype).eps, np.finfo(sum_type(param.dtype)).eps
        g, size = g * (-1 if of["maximize"] else 1), abs(g)
        kept = 1 - 0.3 * decay if of["decoupled_weight_decay"] else 1
        if not of["decoupled_weight_decay"]:
            g, size = g + decay * p, size + decay * abs(p)
        m, m_size = beta1 * m + (1 - beta1) * g, abs(m) + size
        v, v_off = beta2 * v + (1 - beta2) * g**2, 3 * (beta2 * v + (1 - beta2) * size * (abs(g) + 2 * size))
        assert_within(unit * abs(m) + 4 * sum_unit * m_size, state[0][i], m, f"adam_update_, average {i}")
        assert_within(unit * v + sum_unit * v_off, state[1][i], v, f"adam_update_, average of squares {i}")
        if of["amsgrad"]:
            v = np.maximum(u[0], v)
            assert_within(unit * v + sum_unit * v_off, state[2][i], v, f"adam_update_, maximum {i}")
        root = np.sqrt(v) / corrections[1]
        change = 0.3 / corrections[0] * m / (root + of["eps"])
        # Of the step: what the average is off, and the root, which is off by half as many parts as its square.
        off = 4 * m_size / (root + of["eps"]) * 0.3 / corrections[0] + abs(change) * (6 + v_off / (2 * v + 1e-300))
        limit = unit * abs(kept * p - change) + sum_unit * (3 * abs(p) + off)
        assert_within(limit, param, kept * p - change, f"adam_update_, parameter {i}")


def stateful(params, layout, options):
    """Averages of gradients and of their squares, and the largest of these, if asked for."""
    count = 2 + options.get("amsgrad", False)
    return [[like(p, layout).abs_() if i else like(p, layout) for p in params] for i in range(count)]


@of_kernels
@pytest.mark.parametrize("options", ADAM)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adam(layout, options):
    """Many sizes and all dtypes in one launch, their gradients and averages in layouts of their own."""
    params = listed(layout)
    grads, state = gradients(params), stateful(params, layout, ADAM[options])
    check_adam(params, grads, state, ADAM[options])
    assert launches("adam_update_", *adam(params, grads, *state, **ADAM[options])) in (1, None)


@of_kernels
@pytest.mark.parametrize("count", [1, 32, 33, 128, 129])
def test_adam_of_many_tensors(count):
    params = numbered(count)
    grads, state = gradients(params), stateful(params, "rows", {})
    check_adam(params, grads, state, ADAM["decay"])
    assert launches("adam_update_", *adam(params, grads, *state)) in (2 if count > 128 else 1, None)
    assert not launches("adam_update_", *adam(*([rand(0)] for _ in range(4))))


@of_kernels
def test_adam_of_layouts_that_do_not_merge():
    params, grads = odd_orders()
    check_adam(params, grads, stateful([rand(3, 3, 3, 3) for _ in params], "rows", ADAM["amsgrad"]), ADAM["amsgrad"])
    not_merging(
        "adam_update_", lambda params, grads: adam(params, grads, *([p.clone() for p in params] for _ in range(2)))
    )


@of_kernels
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_takes_its_numbers_from_the_device(decoupled):
    params = numbered(5)
    grads, options = gradients(params), {"weight_decay": 0.1, "decoupled_weight_decay": decoupled, "amsgrad": True}
    lrs = [0.5, 0.0, 0.25]
    rows = [[lr, 1 - 0.9**step, math.sqrt(1 - 0.999**step)] for step, lr in enumerate(lrs, 1)]

    def args(lists, **numbers):
        return adam(lists[0], grads, *lists[1:], **{"lr": 9.0} | numbers | options)

    written = [params, *stateful(params, "rows", options)]
    rates = torch.tensor(rows, dtype=torch.float64)
    check_turns("adam_update_", args, written, rates, lambda lists, row: args(lists, lr=lrs[row], step=row + 1))


@of_kernels
def test_adam_of_special_values_and_offsets_beyond_32_bits():
    """Infinite parameters stay, where nothing but a decay would move them; a maximum that is NaN stays, and arises."""
    inf, nan = math.inf, math.nan
    for options in ({}, {"weight_decay": 0.5, "decoupled_weight_decay": True}):
        p = torch.tensor([inf, -inf, inf])
        kernel("adam_update_", *adam([p], *([torch.zeros(3)] for _ in range(3)), **options))
        same(p, torch.tensor([inf, -inf, inf]), "adam_update_")
    p, g, m = torch.zeros(3), torch.tensor([1.0, nan, 1.0]), torch.zeros(3)
    v, u = torch.zeros(3), torch.tensor([nan, 5.0, 5.0])
    kernel("adam_update_", *adam([p], [g], [m], [v], [u], amsgrad=True))
    same(u, torch.tensor([nan, nan, 5.0]), "adam_update_", equal_nan=True)
    assert p.isnan().tolist() == [True, True, False]
    x, state = far(3, 8).copy_(rand(3, 8)), [torch.zeros(3, 8).half() for _ in range(2)]
    before = x.clone()
    kernel("adam_update_", *adam([x], [torch.ones(3, 8).half()], [state[0]], [state[1]], lr=0.5))
    same(x, before - 0.5, "adam_update_", rtol=2e-3)  # two roundings
