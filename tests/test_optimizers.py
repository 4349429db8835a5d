"""Optimizers and learning rates agree with torch.optim's at every step, on every path.

The tolerances are those of all trajectories. Adam divides by the root of the mean square of the gradient, so that where
this is near eps, rounding would be amplified: the gradients of the data here are far from there, at every step.
"""

import copy
import io
import itertools
import math
import pickle
import signal

import pytest
import torch
from oracle import same
from test_parameters import TIES, tie
from test_plan import interrupted
from test_trajectories import data
from torch import nn
from torch.optim import lr_scheduler
from trajectories import TOLERANCE, assert_same_trajectory, mlp

from scratchcuda import CrossEntropy, Dense, Model, Optimizer, SimpleLinearRegression, Tanh

OPTIMIZERS = {
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "nesterov": {"optimizer": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    "dampening": {"optimizer": "sgd", "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "adam": {"optimizer": "adam"},
    "amsgrad": {"optimizer": "adam", "amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.9)},
    "adamw": {"optimizer": "adamw"},
    "adamw with options": {"optimizer": "adamw", "weight_decay": 0.3, "betas": (0.5, 0.95), "eps": 1e-3},
}
#: Of torch's: each makes a scheduler of an optimizer at 0.05.
SCHEDULES = {
    "StepLR": lambda of: lr_scheduler.StepLR(of, 2, 0.5),
    "OneCycleLR": lambda of: lr_scheduler.OneCycleLR(of, 0.1, 5, cycle_momentum=False),
    "ReduceLROnPlateau": lambda of: lr_scheduler.ReduceLROnPlateau(of, patience=0, threshold=0.5),
    "SequentialLR": lambda of: lr_scheduler.SequentialLR(
        of, [lr_scheduler.ConstantLR(of, 0.5, 1), lr_scheduler.ExponentialLR(of, 0.5)], [2]
    ),
    "ChainedScheduler": lambda of: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(of, 0.5, 1.0, 3), lr_scheduler.CosineAnnealingLR(of, 7)]
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in OPTIMIZERS), ("nesterov", torch.float32), ("amsgrad", torch.float32)],
    ids=str,
)
def test_optimizers(name, dtype, path):
    x, y = data(24, 5, 3, dtype=dtype)
    model = mlp([5, 7, 3], Tanh, dtype=dtype)
    assert_same_trajectory(model, x, y, path, optimizer=OPTIMIZERS[name], lr=0.02, shuffle=True, epochs=2)
    assert model.optimizer.steps == 8
    assert {slot.name for slot in model._slots()} == model.optimizer.state.keys()


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [
        *(pytest.param(name, {}, marks=pytest.mark.backends("tensor")) for name in SCHEDULES),
        ("OneCycleLR", {}),
        ("OneCycleLR", OPTIMIZERS["adam"]),
        ("SequentialLR", OPTIMIZERS["adamw"]),
    ],
)
def test_schedulers(schedule, optimizer, path, recwarn):
    x, y = data(24, 5, 3)
    model = mlp([5, 7, 3], Tanh)
    options = {"schedule": SCHEDULES[schedule], "optimizer": optimizer or {"weight_decay": 0.1}}
    assert_same_trajectory(model, x, y, path, epochs=5, lr=0.05, batch_size=9, **options)
    assert len(set(model.history.lr)) > 1
    assert not [warning for warning in recwarn if "scratchcuda" in warning.filename]


def test_a_plateau_is_one_of_the_validation_loss_if_there_is_one(path):
    (x, y), model = data(24, 5, 3), mlp([5, 7, 3], Tanh)
    for valid in ((), (x[:5], y[:5])):
        scheduler = lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)], 0.01), threshold=0)
        history = model.fit(x, y, 3, scheduler, 9, *valid, plan=path != "general", verbose=False)
        assert scheduler.best == min(history.valid_loss if valid else history.loss)


def test_a_function_of_the_epoch(path, dtype):
    x, y = data(24, 5, 3, dtype=dtype)
    models = [mlp([5, 7, 3], Tanh, dtype=dtype) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"weight_decay": 0.1, "plan": path != "general", "verbose": False}
    history = models[0].fit(x, y, 3, lambda epoch: 0.1 / (1 + epoch), 7, **options)
    for epoch in range(3):
        models[1].fit(x, y, 1, 0.1 / (1 + epoch), 7, **options)
    assert history.lr == [0.1, 0.05, 0.1 / 3]
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        # on a GPU one update of all rounds in another order than one in each product
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("parts", "name"), [("*-", "nesterov"), ("w", "amsgrad"), ("b", "momentum")])
def test_frozen_parameters(parts, name, path):
    x, y = data(24, 5, 3)
    model = mlp([5, 7, 6, 3], Tanh)
    if parts == "*-":
        model.layers[0].is_trainable = False
    else:
        model.layers[1].frozen = tuple(parts)
    assert_same_trajectory(model, x, y, path, optimizer=OPTIMIZERS[name], lr=0.02, epochs=2)
    assert model.optimizer.state.keys() == {slot.name for slot in model._slots() if slot.is_trained}


@pytest.mark.parametrize(("ties", "name"), [*zip(TIES, itertools.cycle(["dampening", "amsgrad", "adamw"]))])
def test_tied_parameters(ties, name):
    """Beside autograd, which adds up the gradients of what is used twice; what is shared decays once."""
    model = mlp([5, 5, 5, 5, 3], Tanh)
    views = {(i, name): (of, view) for i, name, of, view in TIES[ties]}
    leaves = {(i, name): getattr(layer, name).clone() for i, layer in enumerate(model.layers) for name in "wb"}
    leaves = {key: leaf.requires_grad_() for key, leaf in leaves.items() if key not in views}
    tie(model, TIES[ties])

    def twin(i, name):
        of, view = views.get((i, name), (None, None))
        return leaves[i, name] if view is None else view(twin(of, name))

    options = dict(OPTIMIZERS[name])
    kind, decay = options.pop("optimizer"), options.pop("weight_decay", 0.01)
    groups = [
        {"params": [leaf for key, leaf in leaves.items() if key[1] == name], "weight_decay": decay * (name == "w")}
        for name in "wb"
    ]
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](
        groups, lr=0.02, **options
    )
    given = OPTIMIZERS[name]
    for x, y in zip(*(values.split(7) for values in data(28, 5, 3)), strict=True):
        value = x
        for i in range(4):
            value = value @ twin(i, "w") + twin(i, "b")
            value = value if i == 3 else value.tanh()
        optimizer.zero_grad()
        nn.functional.mse_loss(value, y).backward()
        optimizer.step()
        history = model.fit(x, y, 1, 0.02, 7, verbose=False, **given)
        given = {"optimizer": model.optimizer}
        assert history.reason == "parameters share memory"
        for i, name in [(i, name) for i in range(4) for name in "wb"]:
            # some dozen roundings of numbers about 1
            torch.testing.assert_close(getattr(model.layers[i], name), twin(i, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_regression(name, path, dtype):
    x = torch.randn(24, dtype=dtype)
    y = 2 * x - 1 + torch.randn(24, dtype=dtype)
    options = {"optimizer": OPTIMIZERS[name], "lr": 0.02, "epochs": 2}
    assert_same_trajectory(SimpleLinearRegression(dtype=dtype), x, y, path, **options)


class Own(Dense):
    """A layer of somebody's own, whose formula is in tensor operations."""

    def backward(self, delta, lr, gradients=None):
        delta = self.act_f.backward(delta, self.a)
        gradients |= {"w": self.input.T @ delta, "b": delta.sum(0)}
        return delta @ self.w.T


def test_layers_of_ones_own():
    x, y = data(24, 5, 3)
    model = mlp([5, 7, 3], Tanh)
    model.layers[0].__class__ = Own
    model.to_torch = lambda: Model.to_torch(mlp_like(model))
    assert_same_trajectory(model, x, y, "general", optimizer=OPTIMIZERS["amsgrad"], lr=0.02)


def mlp_like(model):
    twin = mlp([5, 7, 3], Tanh)
    twin.load_state_dict(model.state_dict())
    return twin


def test_bfloat16(path):
    path = "general" if path == "tensor plan" else path
    x, y = data(24, 5, 3, dtype=torch.bfloat16)
    # 8 bits: a handful of roundings are 2e-2
    options = {"epochs": 1, "tolerance": 5e-2, "lr": 0.02, "optimizer": OPTIMIZERS["momentum"], "alive": False}
    assert_same_trajectory(mlp([5, 7, 3], Tanh, dtype=torch.bfloat16), x, y, path, **options)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("copied", "name"),
    [(lambda model: model, "dampening"), (copy.deepcopy, "amsgrad"), (pickled, "nesterov"), (saved, "adamw")],
    ids=["itself", "deepcopy", "pickle", "torch.save"],
)
def test_a_fit_goes_on_where_the_last_one_ended(name, copied, path):
    """With the same bits, from a copy of the model too; and one begun anew does not."""
    x, y = data(24, 5, 3)
    options = {"plan": path != "general", "verbose": False}
    model = mlp([5, 7, 3], Tanh)
    whole, anew = copy.deepcopy(model), copy.deepcopy(model)
    whole.fit(x, y, 4, 0.02, 7, **options, **OPTIMIZERS[name])
    model.fit(x, y, 1, 0.02, 7, **options, **OPTIMIZERS[name])
    model = copied(model)
    model.fit(x, y, 2, 0.02, 7, **options, optimizer=model.optimizer)
    model.fit(x, y, 1, 0.02, 7, **options, optimizer=model.optimizer)
    same(model.state_dict(), whole.state_dict())
    assert model.optimizer.steps == whole.optimizer.steps == 16
    for of_name in whole.optimizer.state:
        same(model.optimizer.state[of_name], whole.optimizer.state[of_name])
    for _ in range(2):
        anew.fit(x, y, 2, 0.02, 7, **options, **OPTIMIZERS[name])
    assert anew.optimizer.steps == 8
    assert not torch.equal(anew.layers[0].w, whole.layers[0].w)


def test_a_fit_goes_on_by_another_path_and_in_another_dtype(path):
    x, y = data(24, 5, 3)
    model = mlp([5, 7, 3], Tanh)
    twin = copy.deepcopy(model)
    for m, plan in ((model, path != "general"), (twin, path == "general")):
        m.fit(x, y, 2, 0.02, 7, plan=plan, verbose=False, **OPTIMIZERS["adam"])
        m.fit(x, y, 2, 0.02, 7, plan=not plan, verbose=False, optimizer=m.optimizer)
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)  # the same sums in another order
    model.to(torch.float32).fit(
        x.float(), y.float(), 1, 0.02, 7, plan=path != "general", verbose=False, optimizer=model.optimizer
    )
    assert model.optimizer.state["layers.0.w"]["exp_avg"].dtype == torch.float32
    assert model.optimizer.steps == 20


@pytest.mark.parametrize("name", ["dampening", "adamw"])
def test_ctrl_c_leaves_the_state_of_the_last_finished_step(name, path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    options = {"plan": path != "general", "verbose": False}
    x, y = data(20, 5, 3)  # batches of 6: four steps an epoch
    try:
        with monkeypatch.context() as patch:
            model = interrupted(patch, path, at=6)
            twin = copy.deepcopy(model)
            with pytest.raises(KeyboardInterrupt):
                model.fit(x, y, 3, 0.02, 6, **options, **OPTIMIZERS[name])
    finally:
        signal.signal(signal.SIGINT, before)
    done = len(model.history.step_loss)
    assert model.optimizer.steps == done == (7 if path == "graph plan" and name == "dampening" else 6)
    twin.fit(x, y, 1, 0.02, 6, **options, **OPTIMIZERS[name])
    for batch in list(zip(x.split(6), y.split(6), strict=True))[: done - 4]:
        twin.fit(*batch, 1, 0.02, 6, **options, optimizer=twin.optimizer)
    same(model.state_dict(), twin.state_dict())
    for of_name in twin.optimizer.state:
        same(model.optimizer.state[of_name], twin.optimizer.state[of_name])


def test_a_step_by_hand():
    """Model.update takes an optimizer, as the fits of the general path do."""
    x, y = data(24, 5, 3)
    model = mlp([5, 7, 3], Tanh)
    twin, optimizer = copy.deepcopy(model), Optimizer("adam", weight_decay=0.1)
    twin.fit(x, y, 3, 0.02, 24, plan=False, verbose=False, optimizer="adam", weight_decay=0.1)
    for _ in range(3):
        model.update(model.__forward__(x), y, 0.02, optimizer=optimizer)
    same(model.state_dict(), twin.state_dict())
    with pytest.raises(ValueError, match=r"weight_decay is 0.2, expected that of the optimizer alone"):
        model.update(model.__forward__(x), y, 0.02, 0.2, optimizer=optimizer)


def test_a_bad_rate_of_a_later_epoch_ends_the_fit_after_the_one_before(path):
    (x, y), model = data(24, 5, 3), mlp([5, 7, 3], Tanh)
    twin = copy.deepcopy(model)
    options = {"plan": path != "general", "verbose": False}
    with pytest.raises(ValueError, match="lr of epoch 2 is nan, expected a finite number of at least 0"):
        model.fit(x, y, 4, lambda epoch: math.nan if epoch == 2 else 0.1, 7, **options)
    assert model.history.lr == [0.1, 0.1]
    twin.fit(x, y, 2, lambda epoch: 0.1, 7, **options)
    same(model.state_dict(), twin.state_dict())


def test_the_digits_train_by_adam(path):
    from sklearn.datasets import load_digits

    x, y = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    model = mlp([64, 32, 10], Tanh, loss_f=CrossEntropy(), dtype=torch.float32)
    x = (x[:600] / 16 + 0.1).float()  # some pixels are always 0: their weights would have no gradient
    assert_same_trajectory(model, x, y[:600], path, epochs=1, batch_size=200, lr=1e-3, optimizer=OPTIMIZERS["adam"])
