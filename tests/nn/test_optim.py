"""SGD, Adam and AdamW, beside torch's own."""

import importlib.util
import itertools
import math
import warnings

import pytest
import torch
from drop_in import DENSE, X, as_torch, assert_as_torch, assert_same, network, ops_run, outcome, rand, run
from oracle import same

import scratchcuda

UPDATES = {"SGD": "sgd_update_", "Adam": "adam_update_", "AdamW": "adam_update_"}
#: Such that each has a state of its own.
STATEFUL = {"SGD": {"momentum": 0.9}, "Adam": {}, "AdamW": {"amsgrad": True}}
by_name = pytest.mark.parametrize("name", UPDATES)


def pair(name):
    return getattr(scratchcuda.optim, name), getattr(torch.optim, name)


def stateful(kind, params, lr=0.1, **options):
    return kind(params, lr, **STATEFUL[kind.__name__], **options)


def by_optimizer(*kernels):
    """As as_torch, for each of the optimizers, whose update has to run on the kernels too."""

    def make(behaviour):
        @by_name
        def test(name, backend):
            assert_as_torch(behaviour, (*kernels, UPDATES[name]), backend, name)

        return test

    return make


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


TORCHS = [{"foreach": False}, {"lr": torch.tensor(0.1, dtype=torch.float64)}, {"weight_decay": torch.tensor(0.1)}]
OF_ADAM = [
    {},
    {"weight_decay": 0.1, "maximize": True},
    {"amsgrad": True, "betas": (0.5, 0.9), "eps": 0.1},
    {"foreach": True},
    {"fused": True, "amsgrad": True},
    {"betas": (torch.tensor(0.5), torch.tensor(0.9)), "foreach": False},  # which on a GPU is not the default
    *TORCHS,
]
OPTIONS = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.5, "dampening": 0.3, "maximize": True},
        {"weight_decay": 0.1, "maximize": True},
        {"foreach": True, "momentum": 0.9},
        {"fused": True, "weight_decay": 0.1},
        *TORCHS,
    ],
    "Adam": [*OF_ADAM, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "AdamW": OF_ADAM[:3] + TORCHS[:1],
}


@pytest.mark.parametrize(("name", "options"), [(name, of) for name, all_ in OPTIONS.items() for of in all_], ids=str)
def test_optimizer(name, options, backend):
    """Also in groups, from a state that the other has saved, and by its text."""
    options = {"lr": 0.1} | options

    def behaviour(nn, kind):
        params = parameters()
        optimizer = kind(params[:2], **options)
        optimizer.add_param_group({"params": params[2:], "lr": 0.05})
        results = [repr(optimizer), trained(optimizer, params)]
        for other in pair(name):
            loaded = other([{"params": params[:2]}, {"params": params[2:]}], lr=1.0)
            loaded.load_state_dict(optimizer.state_dict())
            results.append(trained(loaded, params, 2))
        return results

    tensors = [options["lr"], options.get("weight_decay"), *options.get("betas", ())]
    torchs = any(isinstance(value, torch.Tensor) for value in tensors) or options.get("foreach") or options.get("fused")
    assert_as_torch(behaviour, () if torchs else (UPDATES[name],), backend, name)


@by_optimizer()
def test_schedulers(nn, kind):
    results = []
    for make in (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    ):
        params = parameters()
        optimizer = stateful(kind, params)
        scheduler = make(optimizer)
        for _ in range(4):
            results.append(trained(optimizer, params, 1))
            scheduler.step()
    return results


@by_optimizer(*DENSE, "tanh", "tanh_backward", "mse_value", "mse_backward")
def test_scaled_gradients(nn, kind):
    """By GradScaler: of float16, with a step that is left out because of an infinite gradient."""
    net, results = network(nn).float(), []
    optimizer, scaler = stateful(kind, net.parameters()), torch.amp.GradScaler(X.device.type, init_scale=256.0)
    for step in range(4):
        with torch.autocast(X.device.type, torch.float16):
            loss = nn.MSELoss()(net(X.float()), X[:, :3].float())
        optimizer.zero_grad()
        scaler.scale(loss * (float("inf") if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        results.append([loss, scaler.get_scale(), {name: p.clone() for name, p in net.state_dict().items()}])
    return results


def hooks(nn, kind):
    """Each called once a step, also where torch's step runs; a closure's loss is returned."""
    seen, params = [], parameters()
    getattr(torch.optim, kind.__name__)(parameters())  # whose class has its hooks from now on
    for options in ({}, {"foreach": True}):
        optimizer = kind(params, 0.1, **options)
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre"))
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append("post"))
        trained(optimizer, params)
        seen.append(optimizer.step(lambda: seen.append(torch.is_grad_enabled()) or torch.tensor(2.0)))
    return seen


test_hooks = by_optimizer()(hooks)


@by_name
def test_hooks_are_called_once_whenever_ours_is_imported(name):
    """After torch's class has its hooks, too."""
    getattr(torch.optim, name)(parameters())
    spec = importlib.util.spec_from_file_location("imported_later", scratchcuda.optim.__spec__.origin)
    spec.loader.exec_module(later := importlib.util.module_from_spec(spec))
    assert run(hooks, None, getattr(later, name)) == run(hooks, None, getattr(torch.optim, name))


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


@by_optimizer()
def test_gradients_that_kernels_do_not_take(nn, kind):
    """Complex ones, and expanded ones; a sparse one is SGD's alone."""
    params = [torch.nn.Parameter(rand(3)), torch.nn.Parameter(rand(3).to(torch.cfloat))]
    optimizer = stateful(kind, params)
    for _ in range(2):
        params[0].grad, params[1].grad = torch.ones(1, dtype=torch.float64).expand(3), rand(3).to(torch.cfloat)
        optimizer.step()
    params[0].grad = rand(3).to_sparse()
    return [params, outcome(lambda: optimizer.step() and None) if kind.__name__ != "SGD" else None]


@as_torch()
def test_differentiable_updates(nn, sgd):
    p = rand(3, requires_grad=True)
    q = p.clone()
    optimizer = sgd([q], 0.1, differentiable=True)
    q.grad = 2 * p
    optimizer.step()
    return torch.autograd.grad(q.square().sum(), p)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_capturable_updates_are_torchs(name):
    """It has them on some devices only."""

    def behaviour(nn, kind):
        params = parameters()[:1]
        params[0].grad = torch.ones_like(params[0])
        return [outcome(kind(params, capturable=True).step), params]

    assert_same(*(run(behaviour, None, kind) for kind in pair(name)))


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


WRONG = [("SGD", {"momentum": -1.0}), ("SGD", {"nesterov": True})]
WRONG += [("Adam", {"betas": (1.0, 0.9)}), ("AdamW", {"eps": -1.0}), ("AdamW", {"decoupled_weight_decay": True})]
WRONG += [(name, wrong) for name in UPDATES for wrong in ({"lr": -1.0}, {"fused": 1, "foreach": 1})]


@pytest.mark.parametrize(("name", "options"), WRONG, ids=str)
def test_optimizer_refuses(name, options):
    ours, theirs = (outcome(lambda kind=kind: kind(parameters(), **options)) for kind in pair(name))
    assert ours is theirs
    assert issubclass(theirs, Exception)


OF_ALL = [{"lr": -0.1}, {"weight_decay": -0.1}, {"lr": 0.2}, {"maximize": "True"}]
CHANGES = [{"momentum": 0.0}, {"dampening": 0.5}, {"nesterov": "True"}, {"nesterov": False, "dampening": math.inf}]
CHANGES = [("SGD", changes) for changes in CHANGES] + [(name, changes) for name in UPDATES for changes in OF_ALL]
CHANGES += [("Adam", changes) for changes in ({"eps": -1.0}, {"betas": (0.9, 1.0)}, {"decoupled_weight_decay": True})]


@pytest.mark.parametrize(("name", "changes"), CHANGES, ids=str)
def test_options_that_change_later(name, changes):
    """As schedulers may leave them, Nesterov's without momentum too; or as no kernel takes them."""

    def behaviour(nn, kind):
        params = parameters()
        optimizer = stateful(kind, params, **({"nesterov": True} if name == "SGD" else {}))
        trained(optimizer, params, 1)
        optimizer.param_groups[0].update(changes)
        return trained(optimizer, params)

    assert_same(*(run(behaviour, None, kind) for kind in pair(name)))


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


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("what", SHARED)
def test_optimizer_of_what_shares_memory(what, name):
    """One after another, as torch on a CPU."""
    views, share = SHARED[what]

    def behaviour(nn, kind):
        warnings.simplefilter("ignore")  # of duplicates
        made = {}
        params = [made.setdefault(view, torch.nn.Parameter(view)) for view in views(rand(12))]
        options = {"nesterov": True} if name == "SGD" else {}
        optimizer = stateful(kind, params, weight_decay=0.1, foreach=False, **options)
        for step in range(3):
            for p in params:
                p.grad = torch.randn_like(p)
            if share and step:
                share(params[0], params[-1], optimizer.state)
            optimizer.step()
        return [params, optimizer.state_dict()]

    assert_same(*(run(behaviour, None, kind) for kind in pair(name)))


def test_gradients_of_a_subclass_are_torchs(backend):
    p = torch.nn.Parameter(rand(3))
    p.grad = rand(3).as_subclass(type("Own", (torch.Tensor,), {}))
    expected = p.detach() - 0.1 * p.grad.as_subclass(torch.Tensor)
    _, served = ops_run(scratchcuda.optim.SGD([p], 0.1).step)
    assert_same(p.detach(), expected)
    assert served == set()


@by_name
def test_an_update_bumps_versions_of_the_state_too(name):
    p = torch.nn.Parameter(rand(3))
    optimizer = stateful(getattr(scratchcuda.optim, name), [p])
    versions = []
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
        versions.append([t._version for t in (p, *optimizer.state[p].values())])
    assert all(after > before for pair in itertools.pairwise(versions) for before, after in zip(*pair, strict=True))


@by_name
def test_an_update_that_fails_leaves_everything_as_it_was(name, backend):
    """An expanded parameter has no memory of its own for each element."""
    params = [torch.nn.Parameter(rand(3)), torch.nn.Parameter(rand(1).expand(3))]
    optimizer, before = stateful(getattr(scratchcuda.optim, name), params), params[0].clone()
    for p in params:
        p.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"single memory location|is expanded"):
        optimizer.step()
    if backend != "tensor":  # torch's own has updated the first
        same(params[0], before)
        assert not any(value.any() for state in optimizer.state.values() for value in state.values())
