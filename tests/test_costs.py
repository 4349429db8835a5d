"""The registry of FLOPs and bytes, of torch's ops beside counts by hand; ours tell theirs in tests/ops."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scratchcuda.nn import convert
from scratchcuda.ops import _emulator
from scratchcuda.profiler import costs

pytestmark = pytest.mark.backends("tensor")
aten = torch.ops.aten
M, K, N = 5, 3, 4  # rows, features in, features out


def made(*shape):
    return torch.randn(*shape)


X, W, B, D = (lambda: made(M, K)), (lambda: made(K, N)), (lambda: made(N)), (lambda: made(M, N))
ROWS = torch.arange(M)  # class indices, numbers of samples


def test_arguments_by_name():
    op, d, x = torch.ops.scratchcuda.dense_backward_weights.default, D(), X()
    assert costs.cost(op, (d,), {"x": x}, op(d, x)) == costs.cost(op, (d, x), {}, op(d, x))


X_, ONE = made(M, K), made(M, N)
SGD = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1, "dampening": 0.0, "nesterov": False, "maximize": False}
SGD |= {"is_first_step": False}
ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.1, "eps": 1.0, "amsgrad": False, "maximize": True}


def adams(maxima):
    return [B()], [B()], [B()], [B().square()], [B().square()] * maxima


TORCHS = {
    "addmm": (aten.addmm.default, (B(), X_, W()), {}, 2 * M * K * N, N + M * K + K * N + M * N),
    "addmm_": (aten.addmm_.default, (ONE.clone(), X_, W()), {}, 2 * M * K * N, 2 * M * N + M * K + K * N),
    "out": (aten.mm.out, (X_, W()), {"out": ONE.clone()}, 2 * M * K * N, M * K + K * N + M * N),
    "twice": (aten.dot.default, (ONE[0], ONE[0]), {}, 2 * N, N + 1),
    "in place": (aten.relu_.default, (ONE.clone(),), {}, M * N, 2 * M * N),
    "expanded": (aten.add.Tensor, (ONE, B().expand(M, N)), {}, M * N, 2 * M * N + N),
    "reduction": (aten.sum.dim_IntList, (ONE, [0]), {}, M * N, M * N + N),
    "filled": (aten.fill_.Scalar, (ONE.clone(), 1), {}, 0, M * N),
    "view": (aten.t.default, (ONE,), {}, 0, 0),
    "picked": (aten.index_select.default, (ONE, 0, torch.tensor([1])), {}, 0, 2 * N + 2),
    "foreach zero": (aten._foreach_zero_.default, ([ONE.clone(), B()],), {}, 0, M * N + N),
    "fused": (aten._fused_sgd_.default, ([B()], [B()], []), SGD, 2 * N, 3 * N),
    "fused momentum": (aten._fused_sgd_.default, ([B()], [B()], [B()]), SGD | {"momentum": 0.9}, 4 * N, 5 * N),
    "fused adam": (aten._fused_adam_.default, (*adams(0), [torch.ones(())]), ADAM, 16 * N, 7 * N + 1),
    "fused adamw": (
        aten._fused_adamw_.default,
        (*adams(1), [torch.ones(())]),
        ADAM | {"amsgrad": True},
        16 * N,
        9 * N + 1,
    ),
    "vector": (aten.addmv.default, (B(), W().T.contiguous(), W()[:, 0]), {}, 2 * K * N, N + K * N + K + N),
    "unbatched": (aten.nll_loss_forward.default, (B(), torch.tensor(1), None, 1, -100), {}, 1, 2 + 1 + 2),
    "foreach": (aten._foreach_add_.List, ([ONE.clone(), B()], [ONE, B()]), {}, M * N + N, 3 * (M * N + N)),
}


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_ops_by_hand(name):
    op, args, kwargs, flops, elements = TORCHS[name]
    found = costs.cost(op, args, kwargs, op(*args, **kwargs))
    assert (found.flops, found.bytes) == (flops, 4 * elements)  # an index of int64 as two elements


#: Module, groups, stride, dilation.
CONVOLUTIONS = [
    (module, groups, stride, dilation)
    for module in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    for groups, stride, dilation in ((1, 1, 1), (2, 2, 1), (4, 1, 2))
]


@pytest.mark.parametrize(("module", "groups", "stride", "dilation"), CONVOLUTIONS)
def test_convolutions_by_their_jacobian(module, groups, stride, dilation):
    """Each pair of an input and an output that it reaches is one multiply-add, in the forward and in each gradient."""
    net = module(4, 8, 2, groups=groups, stride=stride, dilation=dilation, bias=False)
    x = torch.rand(2, 4, *[4] * (net.weight.dim() - 2))
    multiply_adds = torch.autograd.functional.jacobian(net, x).count_nonzero().item()
    # weight, bias, stride, padding, dilation, transposed, output padding, groups
    of = [net.weight, None, net.stride, net.padding, net.dilation, net.transposed, net.output_padding, groups]
    y = aten.convolution(x, *of)
    assert costs.cost(aten.convolution.default, (x, *of), {}, y).products == 2 * multiply_adds
    for mask in itertools.product([False, True], repeat=3):
        args = (y, x, net.weight, [8], *of[2:], list(mask))
        found = costs.cost(aten.convolution_backward.default, args, {}, aten.convolution_backward(*args))
        assert (found.products, found.others) == (2 * multiply_adds * sum(mask[:2]), y.numel() * mask[2])


LAYERS, WIDTH = 2, 6  # of the cuDNN call below, which needs a GPU to run, and none to be counted
WEIGHTS = [made(4 * WIDTH, WIDTH), made(4 * WIDTH, WIDTH), made(4 * WIDTH), made(4 * WIDTH)] * LAYERS


@pytest.mark.parametrize(("name", "times"), [("_cudnn_rnn", 1), ("_cudnn_rnn_backward", 2)])
def test_cudnns_recurrence_by_hand(name, times):
    op, x, state = getattr(aten, name).default, made(M, K, WIDTH), made(LAYERS, K, WIDTH)
    given = {"input": x, "weight": WEIGHTS, "weight_buf": made(99), "hx": state, "cx": state}
    given["output_mask"] = [True] * 4
    named = {argument.name: given.get(argument.name) for argument in op._schema.arguments}
    assert costs.cost(op, (), named, (x, state)).products == times * 2 * M * K * LAYERS * 2 * 4 * WIDTH**2


@pytest.mark.parametrize(
    ("op", "args", "flops"),
    [
        (aten.max_pool2d_with_indices, (torch.rand(1, 2, 4, 4), [2, 2], [1, 1]), 2 * 9 * 4),
        (aten.avg_pool2d, (torch.rand(1, 2, 4, 4), [2, 2], [1, 1]), 2 * 9 * 4),
        (aten.native_layer_norm, (made(M, N), [N], made(N), made(N), 1e-5), 7 * M * N),
        (aten.embedding_dense_backward, (made(M, N), ROWS, 9, -1, False), M * N),
        (aten.index_put, (made(M, N), [ROWS], made(M, N), True), M * N),
        (aten.index_put, (made(M, N), [ROWS], made(M, N), False), 0),
        (aten.nll_loss_forward, (made(M, N), ROWS % N, None, 1, -100), M),
        (aten.huber_loss, (made(M, N), made(M, N)), 6 * M * N),
        (aten.huber_loss_backward, (torch.rand(()), made(M, N), made(M, N), 1, 1.0), 5 * M * N),
        (aten.smooth_l1_loss, (made(M, N), made(M, N)), 7 * M * N),
        (aten.smooth_l1_loss_backward, (torch.rand(()), made(M, N), made(M, N), 1, 1.0), 6 * M * N),
        (aten.binary_cross_entropy, (torch.rand(M, N), torch.rand(M, N)), 10 * M * N),
        (aten.binary_cross_entropy_backward, (torch.rand(()), torch.rand(M, N), torch.rand(M, N)), 7 * M * N),
        (aten.binary_cross_entropy_with_logits, (made(M, N), torch.rand(M, N)), 10 * M * N),
        (aten.addbmm, (made(M, N), made(2, M, K), made(2, K, N)), 2 * 2 * M * K * N),
        (aten._euclidean_dist, (made(M, K), made(N, K)), 2 * M * K * N),
        (aten.cat, ([made(M, N), made(M, N)],), 0),
        (aten.arange, (9,), 0),
    ],
    ids=lambda value: str(value) if callable(value) else "",
)
def test_torchs_other_ops_by_hand(op, args, flops):
    found = costs.cost(op.default, args, {}, op(*args))
    assert (found.flops, found.counted) == (flops, True)


def test_what_is_not_counted_says_so():
    z = made(M, N)
    assert costs.cost(aten.glu.default, (z,), {}, aten.glu(z))[2:] == (4 * (M * N + M * N // 2), False)


@pytest.mark.backends("tensor", "emulator")
def test_torchs_counter_counts_our_layers_as_torchs():
    net, x = nn.Sequential(nn.Linear(K, 8), nn.ReLU(), nn.Linear(8, N)), made(M, K)
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            net(x).sum().backward()
        counts.append(counter.get_total_flops())
        convert(net)
    assert counts[0] == counts[1] == 2 * M * (2 * K * 8 + 3 * 8 * N)  # the input needs no gradient


def test_torchs_counter_knows_the_ops_of_an_emulator_that_is_not_built_yet(monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_EMULATOR", "thread, debug")
    _emulator.define()
    assert torch.ops.scratchcuda_emulator_debug_thread.dense in FlopCounterMode(display=False).flop_registry
