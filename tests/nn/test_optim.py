"""SGD, beside torch's own."""

import importlib.util
import itertools
import math
import warnings

import pytest
import torch
from drop_in import DENSE, X, as_torch, assert_as_torch, assert_same, network, ops_run, outcome, rand, run
from oracle import same

import scratchcuda


def trained(optimizer, params, steps=3):
    """Parameters of three shapes and two dtypes: the second has its first gradient late, the last has none."""
    torch.manual_seed(1)
    for step in range(steps):
        for i, p in enumerate(params[:-1]):
            if step or i != 1:
                p.grad = torch.randn_like(p)
        optimizer.step()
    return [[p.detach().clone() for p in params], optimizer.state_dict()]


def parameters():
    flat = rand(20)  # as an LSTM's on a GPU: views of one tensor, and one that is no parameter yet
    shapes = [flat[:6].view(2, 3), flat[6:12].view(3, 2).T, flat[12:].float(), rand(), rand(3)]
    return [torch.nn.Parameter(p) for p in shapes]


OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.5, "dampening": 0.3, "maximize": True},
    {"weight_decay": 0.1, "maximize": True},
    {"foreach": True, "momentum": 0.9},
    {"foreach": False},
    {"fused": True, "weight_decay": 0.1},
    {"lr": torch.tensor(0.1, dtype=torch.float64)},
    {"weight_decay": torch.tensor(0.1)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_optimizer(options, backend):
    """Also in groups, from a state that the other has saved, and by its text."""
    options = {"lr": 0.1} | options

    def behaviour(nn, sgd):
        params = parameters()
        optimizer = sgd(params[:2], **options)
        optimizer.add_param_group({"params": params[2:], "lr": 0.05})
        results = [repr(optimizer), trained(optimizer, params)]
        for other in (torch.optim.SGD, scratchcuda.optim.SGD):
            loaded = other([{"params": params[:2]}, {"params": params[2:]}], lr=1.0)
            loaded.load_state_dict(optimizer.state_dict())
            results.append(trained(loaded, params, 2))
        return results

    by_tensor = any(isinstance(value, torch.Tensor) for value in options.values())
    torchs = by_tensor or options.get("foreach") or options.get("fused")
    assert_as_torch(behaviour, () if torchs else ("sgd_update_",), backend)


@as_torch("sgd_update_")
def test_schedulers(nn, sgd):
    results = []
    for make in (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    ):
        params = parameters()
        optimizer = sgd(params, 0.1, momentum=0.9)
        scheduler = make(optimizer)
        for _ in range(4):
            results.append(trained(optimizer, params, 1))
            scheduler.step()
    return results


@as_torch(*DENSE, "tanh", "tanh_backward", "mse_value", "mse_backward", "sgd_update_")
def test_scaled_gradients(nn, sgd):
    """By GradScaler: of float16, with a step that is left out because of an infinite gradient."""
    net, results = network(nn).float(), []
    optimizer, scaler = sgd(net.parameters(), 0.1, momentum=0.9), torch.amp.GradScaler(X.device.type, init_scale=256.0)
    for step in range(4):
        with torch.autocast(X.device.type, torch.float16):
            loss = nn.MSELoss()(net(X.float()), X[:, :3].float())
        optimizer.zero_grad()
        scaler.scale(loss * (float("inf") if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        results.append([loss, scaler.get_scale(), {name: p.clone() for name, p in net.state_dict().items()}])
    return results


def hooks(nn, sgd):
    """Each called once a step, also where torch's step runs; a closure's loss is returned."""
    seen, params = [], parameters()
    torch.optim.SGD(parameters())  # whose class has its hooks from now on
    for options in ({}, {"foreach": True}):
        optimizer = sgd(params, 0.1, **options)
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre"))
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("post"))
        trained(optimizer, params)
        seen.append(optimizer.step(lambda: seen.append(torch.is_grad_enabled()) or torch.tensor(2.0)))
    return seen


test_hooks = as_torch("sgd_update_")(hooks)


def test_hooks_are_called_once_whenever_ours_is_imported():
    """After torch's class has its hooks, too."""
    torch.optim.SGD(parameters())
    spec = importlib.util.spec_from_file_location("imported_later", scratchcuda.optim.__spec__.origin)
    spec.loader.exec_module(later := importlib.util.module_from_spec(spec))
    assert run(hooks, None, later.SGD) == run(hooks, None, torch.optim.SGD)


@as_torch("sgd_update_")
def test_gradients_of_other_kinds(nn, sgd):
    params = [torch.nn.Parameter(rand(5, 2)), torch.nn.Parameter(rand(3)), torch.nn.Parameter(rand(3).to(torch.cfloat))]
    optimizer = sgd(params, 0.1)
    sparse = torch.nn.functional.embedding(torch.tensor([1, 3, 1]), params[0], sparse=True).sum()
    (sparse + params[1].sum() + params[2].abs().sum()).backward()
    optimizer.step()
    params[1].grad = torch.ones(1, dtype=torch.float64).expand(3)
    optimizer.step()
    return params


@as_torch()
def test_differentiable_updates(nn, sgd):
    p = rand(3, requires_grad=True)
    q = p.clone()
    optimizer = sgd([q], 0.1, differentiable=True)
    q.grad = 2 * p
    optimizer.step()
    return torch.autograd.grad(q.square().sum(), p)


@as_torch("dense", "tanh", "sgd_update_")
def test_a_stale_graph_raises(nn, sgd):
    net = network(nn)
    optimizer = sgd(net.parameters(), 0.1)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    loss = net(X.clone().requires_grad_()).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": -1.0}, {"nesterov": True}, {"fused": 1, "foreach": 1}])
def test_optimizer_refuses(options):
    sides = torch.optim.SGD, scratchcuda.optim.SGD
    theirs, ours = (outcome(lambda sgd=sgd: sgd(parameters(), **options)) for sgd in sides)
    assert ours is theirs
    assert issubclass(theirs, Exception)


CHANGES = [{"lr": -0.1}, {"momentum": 0.0}, {"dampening": 0.5}, {"weight_decay": -0.1}, {"lr": 0.2}]
CHANGES += [{"nesterov": "True"}, {"maximize": "True"}, {"nesterov": False, "dampening": math.inf}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_options_that_change_later(changes):
    """As schedulers may leave them, Nesterov's without momentum too; or as no kernel takes them."""

    def behaviour(nn, sgd):
        params = parameters()
        optimizer = sgd(params, 0.1, momentum=0.9, nesterov=True)
        trained(optimizer, params, 1)
        optimizer.param_groups[0].update(changes)
        return trained(optimizer, params)

    assert_same(*(run(behaviour, None, sgd) for sgd in (scratchcuda.optim.SGD, torch.optim.SGD)))


#: Parameters of 12 numbers, and what else they share once they have gradients and momentum.
SHARED = {
    "a parameter listed twice": (lambda x: [x, x], None),
    "views": (lambda x: [x, x.view(2, 6)], None),
    "parts": (lambda x: [x[:8], x[4:]], None),
    "parts with gaps": (lambda x: [x.view(3, 4)[:, :3], x.view(3, 4)[:, 2:]], None),
    "views, and another kind between": (lambda x: [x, x.to(torch.cfloat), x.view(2, 6)], None),
    "a gradient": (lambda x: [*x.split(6)], lambda p, q, state: setattr(p, "grad", q.grad)),
    "gradients that are parameters": (lambda x: [*x.split(6)], lambda p, q, state: setattr(p, "grad", q.detach())),
    "momentum": (lambda x: [*x.split(6)], lambda p, q, state: state[p].update(state[q])),
}


@pytest.mark.parametrize("name", SHARED)
def test_optimizer_of_what_shares_memory(name):
    """One after another, as torch on a CPU."""
    views, share = SHARED[name]

    def behaviour(nn, sgd):
        warnings.simplefilter("ignore")  # of duplicates
        made = {}
        params = [made.setdefault(view, torch.nn.Parameter(view)) for view in views(rand(12))]
        optimizer = sgd(params, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=False)
        for step in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            if share and step:
                share(params[0], params[-1], optimizer.state)
            optimizer.step()
        return [params, optimizer.state_dict()]

    assert_same(*(run(behaviour, None, sgd) for sgd in (scratchcuda.optim.SGD, torch.optim.SGD)))


def test_gradients_of_a_subclass_are_torchs(backend):
    p = torch.nn.Parameter(rand(3))
    p.grad = rand(3).as_subclass(type("Own", (torch.Tensor,), {}))
    expected = p.detach() - 0.1 * p.grad.as_subclass(torch.Tensor)
    _, served = ops_run(scratchcuda.optim.SGD([p], 0.1).step)
    assert_same(p.detach(), expected)
    assert served == set()


def test_an_update_bumps_versions_of_momentum_too():
    p = torch.nn.Parameter(rand(3))
    optimizer = scratchcuda.optim.SGD([p], 0.1, momentum=0.9)
    versions = []
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
        versions.append((p._version, optimizer.state[p]["momentum_buffer"]._version))
    assert all(after > before for i in (0, 1) for before, after in itertools.pairwise(v[i] for v in versions))


def test_an_update_that_fails_leaves_everything_as_it_was(backend):
    """An expanded parameter has no memory of its own for each element."""
    params = [torch.nn.Parameter(rand(3)), torch.nn.Parameter(rand(1).expand(3))]
    optimizer, before = scratchcuda.optim.SGD(params, 0.1, momentum=0.9), params[0].clone()
    for p in params:
        p.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"single memory location|is expanded"):
        optimizer.step()
    if backend != "tensor":  # torch's own has updated the first
        same(params[0], before)
        assert not any(optimizer.state.values())
