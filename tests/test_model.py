"""The engine's API: what the documents use, and what users of torch expect besides."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from oracle import same
from torch import nn
from trajectories import TOLERANCE, mlp

import scratchcuda as sc
from scratchcuda import (
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Dense,
    Dropout,
    Flatten,
    InputLayer,
    Linear,
    Model,
    ReLU,
    Sigmoid,
    SimpleLinearRegression,
    Softmax,
    Tanh,
    ops,
)
from scratchcuda.engine.activations import chosen
from scratchcuda.ops._entries import ENTRIES


def sequential(dtype=torch.float64):
    return nn.Sequential(
        nn.Linear(5, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Sigmoid()), nn.Linear(8, 3)
    ).to(dtype)


def test_parameters_have_the_documents_shapes_and_initial_values():
    model = Model([InputLayer(6), Dense(4, Tanh()), Dense(3)], dtype=torch.float64)
    assert [(layer.w.shape, layer.b.shape) for layer in model.layers] == [((6, 4), (4,)), ((4, 3), (3,))]
    # The documents' order of drawing: the input layer's batch, then each layer's weights and bias.
    torch.manual_seed(0)
    torch.randn(10, 6, dtype=torch.float64)
    same(model.layers[0].w, torch.randn(6, 4, dtype=torch.float64))
    same(model.layers[0].b, torch.randn(4, dtype=torch.float64))


def test_dtype_device_and_generator_where_parameters_are_made():
    device = torch.get_default_device()
    generator = torch.Generator(device)
    models = []
    for _ in range(2):
        generator.manual_seed(5)
        models.append(Model([InputLayer(2), Dense(3)], device=device, dtype=torch.float32, generator=generator))
        torch.randn(7)  # torch's default generator does not matter
    assert models[0].dtype == torch.float32
    same(models[0].layers[0].w, models[1].layers[0].w)
    regression = SimpleLinearRegression(dtype=torch.float16, generator=generator)
    assert regression.dtype == regression.w.dtype == torch.float16
    torch.set_default_dtype(torch.float64)
    assert Model([InputLayer(2), Dense(3)]).dtype == torch.float64


UNIFORM = partial(nn.init.uniform_, a=0.5, b=0.6)


@pytest.mark.parametrize(
    "init", [nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.orthogonal_, nn.init.zeros_, UNIFORM]
)
def test_any_function_of_torch_nn_init(init):
    generator = torch.Generator(torch.get_default_device())
    layer = Dense(4, weight_init=init, bias_init=nn.init.ones_)
    Model([InputLayer(6), layer], generator=generator.manual_seed(1))
    generator.manual_seed(1)
    torch.randn(10, 6, generator=generator)
    expected = torch.empty(4, 6)  # torch.nn's layout, which decides what fan-in is
    init(expected, **({} if init is nn.init.zeros_ else {"generator": generator}))
    same(layer.w, expected.T)
    same(layer.b, torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_initial_values_of_torch_nn(dtype):
    """The very same ones from the same seed, and no draw more; but for what a layer says itself."""
    for generator in (torch.Generator(torch.get_default_device()), None):
        (generator or torch).manual_seed(3)
        layers = [InputLayer(5), Dense(8, Tanh()), Dense(3)]
        model = Model(layers, dtype=dtype, generator=generator, init="torch")
        after = torch.randn(2, generator=generator)
        torch.manual_seed(3)
        for layer, linear in zip(
            model.layers, (nn.Linear(5, 8, dtype=dtype), nn.Linear(8, 3, dtype=dtype)), strict=True
        ):
            same([layer.w.T, layer.b], [linear.weight.detach(), linear.bias.detach()])
        same(after, torch.randn(2))
    layer = Dense(3, bias_init=nn.init.zeros_)
    Model([InputLayer(5), layer], init="torch")
    assert (layer.w.abs().max() < 0.5, layer.b.any()) == (True, False)
    with pytest.raises(ValueError, match="init is 'he', expected 'normal' or 'torch'"):
        Model([InputLayer(5), Dense(3)], init="he")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_to_and_from_torch(dtype):
    net = sequential(dtype)
    model = Model.from_torch(net, CrossEntropy())
    assert repr(model) == (
        "Model([\n  InputLayer(5),\n  Dense(8, Tanh()),\n  Dense(8, ReLU()),\n  Sigmoid(),\n  Dense(3, Linear()),\n], "
        "CrossEntropy(probabilities=False))"
    )
    x = torch.randn(9, 5, dtype=dtype)
    assert model.dtype == dtype
    torch.testing.assert_close(model.predict(x), net(x))
    torch.testing.assert_close(model.to_torch()(x), net(x))
    model.layers[0].w.zero_()
    assert net[0].weight.any(), "copies, not views"


def test_copy_parameters_and_set_params():
    net = sequential()
    model = Model([InputLayer(5), Dense(8, Tanh()), Dense(8, ReLU()), Sigmoid(), Dense(3)], dtype=torch.float64)
    model.copy_parameters(net.parameters)
    same(model.layers[1].w, net[2][0].weight.T)
    model.layers[3].set_params(torch.zeros(3, 8), torch.ones(3))
    same(model.predict(torch.randn(2, 5, dtype=torch.float64)), torch.ones(2, 3, dtype=torch.float64))


def test_state_dict_copies_into_another_model():
    one, other = (Model([InputLayer(5), Dense(8, Tanh()), Dense(3)]) for _ in range(2))
    other.load_state_dict(one.state_dict())
    assert list(one.state_dict()) == ["layers.0.w", "layers.0.b", "layers.1.w", "layers.1.b"]
    same(one.layers[1].b, other.layers[1].b)
    regression = SimpleLinearRegression()
    regression.load_state_dict({"w": torch.tensor([2.0]), "b": torch.tensor([1.0])})
    same(regression.predict(torch.tensor([3.0])), torch.tensor([7.0]))


@pytest.mark.parametrize("make", [lambda: mlp([5, 8, 3], Tanh), lambda: SimpleLinearRegression(dtype=torch.float64)])
def test_copies_and_pickles(make):
    model = make()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(model.state_dict(), twin.state_dict())
    state = model.__getstate__()
    state.pop("_shape", None)  # as in pickles of before samples had shapes
    old = type(model).__new__(type(model))
    old.__setstate__(state)
    assert repr(old) == repr(model)


def test_parameters_move_once_to_the_first_data():
    model, regression = Model([InputLayer(5), Dense(3, Softmax())]), SimpleLinearRegression()
    assert model.predict(torch.empty(2, 5, device="meta")).device.type == "meta"
    assert regression.predict(torch.empty(2, device="meta")).device.type == "meta"
    for trained, x in ((model, torch.empty(2, 5)), (regression, torch.empty(2))):
        assert trained.device.type == "meta"
        with pytest.raises(ValueError, match=f"x is on device {x.device}, expected meta as the parameters"):
            trained.predict(x)


def test_a_refused_call_does_not_move():
    model = Model([InputLayer(5), Dense(3)])
    for x, y in ((torch.empty(2, 4), torch.empty(2, 3)), (torch.empty(2, 5), torch.empty(2, 2))):
        with pytest.raises(ValueError, match="has shape"):
            model.fit(x.to("meta"), y.to("meta"), 1, 0.1, 1)
    assert model.device == torch.get_default_device()
    assert model.predict(torch.zeros(2, 5)).device == torch.get_default_device()


def test_parameters_made_or_moved_while_predicting_can_be_trained(usual_path):
    with torch.inference_mode():
        models = [Model([InputLayer(2), Dense(3)]), Model([InputLayer(2), Dense(3)]).to(torch.float64)]
    for model in models:
        x = torch.zeros(4, 2, dtype=model.dtype)
        assert model.fit(x, torch.ones(4, 3, dtype=model.dtype), 1, 0.1, 2, verbose=False).path == usual_path


@pytest.mark.parametrize(
    "model",
    [
        lambda device: Model([InputLayer(5), Dense(3)], device=device),
        lambda device: Model([InputLayer(5), Dense(3)]).to(device),
        lambda device: Model.from_torch(nn.Sequential(nn.Linear(5, 3, device=device))),
    ],
)
def test_an_explicit_device_never_moves(model):
    device = torch.get_default_device()
    model = model(device)
    with pytest.raises(ValueError, match=f"x is on device meta, expected {device} as the parameters"):
        model.predict(torch.empty(2, 5, device="meta"))
    assert model.device == device
    assert model.to(torch.float64).predict(torch.zeros(2, 5, dtype=torch.float64)).dtype == torch.float64


def test_numpy_and_lists_are_data():
    model = mlp([2, 4, 3], Tanh)
    x, y = torch.rand(6, 2, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
    twins = [copy.deepcopy(model) for _ in range(3)]
    for twin, convert in zip(twins, (lambda t: t, lambda t: t.numpy(force=True), torch.Tensor.tolist), strict=True):
        twin.fit(convert(x), convert(y), 2, 0.1, 4, convert(x), convert(y), verbose=False)
        same(twin.predict(convert(x)), twins[0].predict(x))
        assert twin.evaluate(convert(x), convert(y)) == pytest.approx(
            twin.history.valid_loss[-1], rel=TOLERANCE[torch.float64]
        )
    regression = SimpleLinearRegression(dtype=torch.float64)
    regression.fit([1.5, 2.5], [0.1, 0.2], 1, 0.1, 2, verbose=False)
    odd = x.numpy(force=True)[::-1].astype(">f8")
    odd.setflags(write=False)
    same(model.predict(odd), model.predict(x.flip(0)))


@pytest.mark.parametrize("convert", [torch.Tensor.float, torch.Tensor.double, torch.Tensor.bool, torch.Tensor.long])
def test_one_hot_targets_of_any_dtype(convert, path):
    """The notebooks train float64 models on float32 one-hot rows."""
    x, classes = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    by_class, by_row = (mlp([4, 6, 3], Tanh, Softmax, CrossEntropy()) for _ in range(2))
    by_row.load_state_dict(by_class.state_dict())
    by_class.fit(x, classes.to(torch.uint16), 3, 0.5, 5, x, classes, verbose=False)
    one_hot = convert(nn.functional.one_hot(classes, 3))
    history = by_row.fit(x, one_hot, 3, 0.5, 5, x, one_hot, plan=path != "general", verbose=False)
    assert history.path == path
    assert history.valid_loss == pytest.approx(by_class.history.valid_loss, rel=TOLERANCE[torch.float64])


def test_saturated_probabilities_stay_finite(path):
    """A wrong answer given with probability 1: the loss is the gap of the scores, not -log 0."""
    x, y = torch.eye(3, dtype=torch.float64), torch.tensor([1, 2, 0])
    model = Model([InputLayer(3), Dense(3, Softmax())], CrossEntropy(), dtype=torch.float64)
    model.layers[0].w.copy_(2000 * torch.eye(3))
    model.layers[0].b.zero_()
    assert model.evaluate(x, y) == 2000
    history = model.fit(x, y, 1, 300.0, 3, x, y, plan=path != "general", verbose=False)
    assert history.path == path
    assert history.loss == [2000]
    # softmax minus one-hot, over three samples, times the learning rate
    expected = torch.tensor([[1900, 100, 0], [0, 1900, 100], [100, 0, 1900]], dtype=torch.float64)
    torch.testing.assert_close(model.layers[0].w, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_saturated_sigmoids_stay_finite(dtype, usual_path):
    """Scores of 1e4 in favour of the wrong label: losses and gradients are torch's of the scores, on every path."""
    x, y = torch.tensor([[1.0], [-1.0], [0.5]], dtype=dtype), torch.tensor([0, 1, 1])
    scores = (1e4 * x).requires_grad_()
    expected = nn.functional.binary_cross_entropy_with_logits(scores, y[:, None].to(dtype))
    loss = pytest.approx(expected.item(), rel=torch.finfo(dtype).eps)  # a sum of three, rounded
    step = 256 * (torch.autograd.grad(expected, scores)[0] * x).sum()
    for plan in (True, False):
        model = Model([InputLayer(1), Dense(1, Sigmoid())], BinaryCrossEntropy(), dtype=dtype)
        model.layers[0].set_params(torch.full((1, 1), 1e4), torch.zeros(1))
        same(model.predict(x), torch.tensor([[1.0], [0.0], [1.0]], dtype=dtype))
        assert model.evaluate(x, y) == loss
        history = model.fit(x, y, 1, 256.0, 3, x, y, plan=plan, verbose=False)
        is_planned = plan and (dtype.itemsize > 2 or usual_path == "graph plan")
        assert history.path == (usual_path if is_planned else "general")
        assert history.loss == [loss]
        assert history.valid_loss[0] == pytest.approx(model.evaluate(x, y), rel=torch.finfo(dtype).eps)
        torch.testing.assert_close(model.layers[0].w, 1e4 - step.reshape(1, 1))


@pytest.mark.parametrize("last", [[Dense(3, sc.GELU())], [Dense(3), sc.GELU()]], ids=["in a Dense", "by itself"])
def test_a_prediction_keeps_nothing_for_a_backward(last):
    model, x = Model([InputLayer(5), *last]), torch.randn(4, 5)
    assert hasattr(model.__forward__(x), "z")
    assert not vars(model.predict(x))


def test_a_sigmoid_carries_scores_for_its_loss_alone():
    """The Dense computes all others along."""
    model = Model([InputLayer(3), Dense(2, Sigmoid()), Dense(1, Sigmoid())], BinaryCrossEntropy())
    x = torch.randn(4, 3)
    assert [hasattr(layer.forward(torch.randn(4, len(layer.w))), "scores") for layer in model.layers] == [False, True]
    assert copy.deepcopy(model).evaluate(x, [0, 1, 1, 0]) == model.evaluate(x, [0, 1, 1, 0])
    Model([InputLayer(3), Dense(1, model.layers[-1].act_f)], sc.MSE())  # takes nothing from a model that shares it
    assert hasattr(model.predict(x), "scores")
    model.loss_f = sc.MSE()
    assert not hasattr(model.predict(x), "scores")


X, ONE, CLASSES = torch.rand(6, 4), torch.tensor([[0], [1], [1], [0], [1], [0]]), torch.tensor([2, 0, 1, 1, 0, 2])


class Frame:
    """As pandas' have one."""

    def __init__(self, values):
        self.values = np.array(values, object)

    def __array__(self):
        return self.values


FORMS = {
    "integers": lambda t: t,
    "a row for all": lambda t: t.flatten(),
    "a column": lambda t: t.reshape(-1, 1),
    "floats": lambda t: t.flatten().double(),
    "bytes": lambda t: t.numpy(force=True).astype(np.uint8),
    "unsigned": lambda t: t.numpy(force=True).astype(np.uint16),
    "list": lambda t: t.tolist(),
    "bools": lambda t: [bool(value) for value in t],
    "object array": lambda t: Frame(t.tolist()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("loss_f", "outputs", "y"),
    [(MSE(), 1, ONE), (BinaryCrossEntropy(), 1, ONE), (CrossEntropy(), 2, ONE.flatten()), (CrossEntropy(), 3, CLASSES)],
)
def test_targets_as_people_have_them(form, loss_f, outputs, y):
    if form == "bools" and outputs == 3:
        return
    y = y.to(X.device)
    models = [mlp([4, 5, outputs], Tanh, loss_f=loss_f, dtype=torch.float32) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    usual = y if loss_f.takes_classes else y.float()
    for model, targets in zip(models, (usual, FORMS[form](y)), strict=True):
        model.fit(X, targets, 2, 0.1, 4, X, targets, verbose=False)
        model.update(model.__forward__(X), targets if isinstance(targets, torch.Tensor) else usual, 0.1)
    same(models[0].state_dict(), models[1].state_dict())
    assert models[0].history == models[1].history


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_weights_written_into_count_in_the_next_fit(dtype, path):
    """Also those that were converted to the dtype of the predictions."""
    weights, y = torch.tensor([1.0, 2, 3], dtype=dtype), CLASSES.to(X.device)
    model = mlp([4, 5, 3], Tanh, loss_f=CrossEntropy(class_weights=weights), dtype=torch.float32)
    for _ in range(2):
        twin = copy.deepcopy(model)
        twin.loss_f = CrossEntropy(class_weights=weights.tolist())
        losses = [m.fit(X, y, 2, 0.1, 4, X, y, plan=path != "general", verbose=False) for m in (model, twin)]
        assert losses[0] == losses[1]
        weights[0] = 9


def test_integers_are_inputs():
    images, model = torch.randint(256, (6, 4), dtype=torch.uint8), mlp([4, 2], Tanh, dtype=torch.float32)
    expected, targets = model.predict(images.float()), torch.zeros(6, 2)
    for given in (images, images.long(), images.numpy(force=True), Frame(images.tolist())):
        same(model.predict(given), expected)
        assert model.evaluate(given, targets) == pytest.approx(expected.square().mean().item())
    regression = SimpleLinearRegression()
    assert regression.fit([1, 2], [2, 4], 1, 0.1, 2, verbose=False).loss


def test_cross_entropy_of_probabilities_from_elsewhere():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], dtype=torch.float64)
    loss = CrossEntropy(probabilities=True)
    assert loss(p, torch.tensor([1, 1])) == pytest.approx(torch.tensor(4.0).log().item() / 2)
    gradient = loss.backward(p, torch.tensor([1, 0]))
    assert gradient.isfinite().all()
    assert gradient[0].tolist() == [0, -2, 0]
    unnormalised = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(4, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(-(targets * unnormalised.log()).sum() / 4, unnormalised)
    torch.testing.assert_close(loss.backward(unnormalised.detach(), targets), expected)


def test_a_loss_given_later_knows_the_last_softmax():
    model, x = Model([InputLayer(3), Dense(4, Softmax())]), torch.randn(5, 3)
    model.loss_f = CrossEntropy()
    expected = nn.functional.nll_loss(model.predict(x).log(), torch.arange(5) % 4).item()
    assert model.evaluate(x, torch.arange(5) % 4) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(TypeError, match="loss_f is 'mse', expected a loss"):
        model.loss_f = "mse"


def test_input_and_output_after_a_training_step(path):
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.randn(10, 3, dtype=torch.float64)
    model = Model([InputLayer(5), Dense(8, Tanh()), Sigmoid(), Dense(3)], dtype=torch.float64)
    before = copy.deepcopy(model)
    before.fit(x[:7], y[:7], 1, 0.1, 7, verbose=False)
    before.__forward__(x[7:])
    model.fit(x, y, 1, 0.1, 7, plan=path != "general", verbose=False)
    for ours, expected in zip(model.layers, before.layers, strict=True):
        torch.testing.assert_close(ours.a, expected.a, rtol=1e-12, atol=1e-12)
        if isinstance(ours, Dense):
            torch.testing.assert_close(ours.input, expected.input, rtol=1e-12, atol=1e-12)


class Swish(sc.Activation):
    def __call__(self, z):
        self.z = z
        return z * torch.sigmoid(z)

    def backward(self, delta, a):
        s = torch.sigmoid(self.z)
        return delta * (a + s * (1 - a))


class Unknown(Swish):
    op = "swish"


class Sloped(sc.Activation):
    op = "leaky_relu"  # of other attributes than ours

    def __call__(self, z):
        return torch.where(z > 0, z, z / 2)

    def backward(self, delta, a):
        return torch.where(a > 0, delta, delta / 2)


class Called(sc.ReLU):
    op = None


class Renamed(sc.Tanh):
    def backward(self, delta, a):
        return delta * (1 - a**2)


@pytest.mark.parametrize("own", [Swish, Unknown, Sloped, Called, Renamed])
def test_activations_of_users_train_layer_by_layer(own):
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    model = Model([InputLayer(5), Dense(4, own()), own(), Dense(3)], dtype=torch.float64)
    net = [lambda x, i=i: x @ model.layers[i].w + model.layers[i].b for i in (0, 2)]
    leaves = [model.layers[i].w.requires_grad_() for i in (0, 2)]
    loss = (net[1](own()(own()(net[0](x)))) - y).square().mean()
    expected = [(w - 0.1 * g).detach() for w, g in zip(leaves, torch.autograd.grad(loss, leaves), strict=True)]
    for w in leaves:
        w.requires_grad_(False)
    history = model.fit(x, y, 1, 0.1, 20, verbose=False)
    assert (history.path, repr(own())) == ("general", f"{own.__name__}()")
    torch.testing.assert_close([model.layers[i].w for i in (0, 2)], expected)


def test_a_patch_of_the_base_class_leaves_ours_alone(monkeypatch):
    monkeypatch.setattr(sc.Activation, "__call__", lambda self, z: 1 / 0)
    monkeypatch.setattr(sc.Activation, "backward", lambda self, delta, a: 1 / 0)
    z = torch.randn(3, 2)
    torch.testing.assert_close(sc.Tanh().backward(z, sc.Tanh()(z)), z * (1 - z.tanh() ** 2))


class Scale(sc.Layer):
    is_trainable = True
    parameter_names = ("scale",)

    def construct(self, x):
        self.scale = torch.full((x.shape[-1],), 0.5, dtype=x.dtype)
        return self.forward(x)

    def forward(self, x):
        self.x = x
        return x * self.scale

    def backward(self, delta, lr):
        dx = delta * self.scale
        self.scale -= lr * (delta * self.x).sum(0)
        return dx


def test_layers_and_activations_of_ones_own():
    """They train beside ours as autograd would train them."""
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.randn(10, 3, dtype=torch.float64)
    model = Model([InputLayer(5), Dense(8, Swish()), Scale(), Swish(), Dense(3)], dtype=torch.float64)
    leaves = [p.clone().requires_grad_() for p in model.state_dict().values()]
    w0, b0, scale, w1, b1 = leaves
    silu = nn.functional.silu
    nn.functional.mse_loss(silu(silu(x @ w0 + b0) * scale) @ w1 + b1, y).backward()
    history = model.fit(x, y, 1, 0.1, 10, verbose=False)
    assert history.path == "general"
    assert "methods of its own" in history.reason
    for ours, leaf in zip(model.state_dict().values(), leaves, strict=True):
        torch.testing.assert_close(ours, leaf.detach() - 0.1 * leaf.grad, rtol=1e-12, atol=1e-12)


def test_a_loss_of_ones_own():
    class MeanAbsolute(sc.Losses):
        def loss(self, y_pred, y_true):
            return (y_pred - y_true).abs().mean().item()

        def backward(self, y_pred, y_true):
            return (y_pred - y_true).sign() / y_true.numel()

    x, y = torch.randn(10, 5), torch.randn(10, 3)
    model = Model([InputLayer(5), Dense(3, Linear())], MeanAbsolute())
    history = model.fit(x, y, 50, 0.1, 10, x, y, verbose=False)
    assert history.path == "general"
    assert history.valid_loss[-1] < history.loss[0]


class Jacobian(Dense):
    """Takes the softmax's derivative by itself."""

    def backward(self, delta, lr):
        delta = self.a * (delta - (delta * self.a).sum(1, keepdim=True))
        dx, self.w, self.b = delta @ self.w.T, self.w - lr * self.input.T @ delta, self.b - lr * delta.sum(0)
        return dx


class Passing(sc.Activation):
    def __call__(self, z):
        return z

    def backward(self, delta, a):
        return delta.clamp(-1, 1)


class Twice(sc.MSE):
    def __call__(self, y_pred, y_true):
        return 2 * super().__call__(y_pred, y_true)


class OnlyCall(sc.Losses):
    def __call__(self, y_pred, y_true):
        return ((y_pred - y_true) ** 2).sum()  # a tensor

    def backward(self, y_pred, y_true):
        return 2 * (y_pred - y_true)


@pytest.mark.parametrize(
    ("layers", "loss_f"),
    [
        (lambda: [Dense(3, Softmax())], CrossEntropy()),
        (lambda: [Dense(3), Softmax()], CrossEntropy()),
        (lambda: [Dense(3), Softmax(), Linear()], CrossEntropy()),
        (lambda: [Dense(4, Softmax()), Dense(3)], CrossEntropy()),
        (lambda: [Jacobian(3, Softmax())], CrossEntropy()),
        (lambda: [Dense(3, Softmax()), Passing()], CrossEntropy()),
        (lambda: [Dense(3, Softmax()), Passing()], CrossEntropy(probabilities=True)),
        (lambda: [Dense(3, Softmax())], sc.MSE()),
        (lambda: [Dense(3)], Twice()),
        (lambda: [Dense(3)], OnlyCall()),
    ],
)
def test_fit_is_steps_by_hand(layers, loss_f):
    """fit(plan=False) takes loss and gradient in one call where it can: that must change nothing."""
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.rand(10, 3, dtype=torch.float64).softmax(1)
    fitted = Model([InputLayer(5), *layers()], loss_f, dtype=torch.float64)
    by_hand = Model([InputLayer(5), *layers()], loss_f, dtype=torch.float64)
    by_hand.load_state_dict(fitted.state_dict())
    history = fitted.fit(x, y, 3, 0.1, 10, plan=False, verbose=False)
    for loss in history.step_loss:
        y_pred = by_hand.__forward__(x)
        assert float(by_hand.loss_f(y_pred, y)) == pytest.approx(loss, rel=1e-13)  # a few roundings
        by_hand.update(y_pred, y, 0.1)
    assert len(history.step_loss) == 3
    assert (
        sc.metrics.mape(*(torch.cat([p.flatten() for p in m.state_dict().values()]) for m in (by_hand, fitted))) < 1e-13
    )


def test_fit_is_steps_by_hand_after_a_softmax_came_later():
    """The loss was told of no probabilities, so it takes what the softmax gives as scores."""
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.arange(10) % 3
    models = [Model([InputLayer(5), Dense(3)], CrossEntropy(), dtype=torch.float64) for _ in range(2)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
        model.layers[-1].act_f = Softmax()
    fitted, by_hand = models
    fitted.fit(x, y, 1, 0.1, 10, plan=False, verbose=False)
    by_hand.update(by_hand.__forward__(x), y, 0.1)
    same(fitted.layers[0].w, by_hand.layers[0].w)


def test_losses_of_any_kind_are_kept():
    """A loss may give tensors in one step and numbers in another."""

    class Alternates(OnlyCall):
        count = 0

        def __call__(self, y_pred, y_true):
            self.count += 1
            value = super().__call__(y_pred, y_true)
            return (value, value.item(), value.reshape(1))[self.count % 3]

    x, y = torch.randn(12, 5), torch.randn(12, 3)
    history = Model([InputLayer(5), Dense(3)], Alternates()).fit(x, y, 1, 0.0, 4, verbose=False)
    assert [type(loss) for loss in history.step_loss] == [float] * 3


def test_activations_by_name():
    layers = [Dense(3, name) for name in ("linear", *ops.ACTIVATIONS)]
    for layer, name in zip(layers[1:], ops.ACTIVATIONS, strict=True):
        assert chosen(layer.act_f) == ENTRIES[name].usual
    assert repr(layers[0]) == repr(layers[1]) == repr(Dense(3)) == "Dense(3, Linear())"


def test_parameters_are_the_tensors_themselves():
    model = Model([InputLayer(4), Dense(4, bias=False), Dense(4), Dense(2)])
    model.layers[1].w, model.layers[2].is_trainable = model.layers[0].w, False
    first, last = model.layers[0], model.layers[2]
    assert [*map(id, model.parameters())] == [*map(id, (first.w, model.layers[1].b, last.w, last.b))]
    assert sum(p.numel() for p in SimpleLinearRegression().parameters()) == 2
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert scheduler.get_last_lr() == [0.1]


def test_summary(capsys):
    layers = [Flatten(), Dense(4, "relu", bias=False), Dropout(0.2), Dense(4), Dense(2)]
    model = Model([InputLayer((1, 2, 2)), *layers])
    model.layers[3].w, model.layers[4].frozen = model.layers[1].w, ("w",)
    model.summary()
    assert capsys.readouterr().out.splitlines() == [
        "Layer                         Output shape  Parameters  Frozen",
        rule := "-" * 62,
        "InputLayer((1, 2, 2))         (m, 1, 2, 2)           0       0",
        "Flatten()                     (m, 4)                 0       0",
        "Dense(4, ReLU(), bias=False)  (m, 4)                16       0",
        "Dropout(0.2)                  (m, 4)                 0       0",
        "Dense(4, Linear())            (m, 4)                20       0",
        "Dense(2, Linear())            (m, 2)                10       8",
        rule,
        "30 parameters, 8 of them frozen",
    ]


def test_a_summary_calls_no_layer(capsys, monkeypatch):
    """Which might need more than one sample, draw random numbers, or count its calls."""
    model = Model([InputLayer(3), Dense(2), Tanh()])
    monkeypatch.setattr(Dense, "forward", None)
    model.summary()
    assert "(m, 2)                 8" in capsys.readouterr().out


class Columns(Flatten):
    """Flattens by columns."""

    def forward(self, x):
        return super().forward(x.mT)

    def __forward__(self, x):
        return super().__forward__(x.mT)

    def backward(self, delta, lr):
        return super().backward(delta, lr).mT


def test_a_first_flatten_of_ones_own_gets_samples_as_they_are():
    model, x = Model([InputLayer((2, 3)), Columns(), Dense(2)]), torch.randn(4, 2, 3)
    assert torch.equal(model.predict(x), model.layers[1].forward(x.mT.flatten(1)))
    assert model.fit(x, torch.randn(4, 2), 1, 0.1, 4, verbose=False).path == "general"


class Pool(sc.Layer):
    """A layer of one's own over images."""

    parameter_names = ()

    def forward(self, x):
        return x.mean(-1)

    def backward(self, delta, lr):
        return delta.unsqueeze(-1).expand(*delta.shape, 8) / 8


def test_layers_of_ones_own_over_images():
    x, y = torch.randn(10, 3, 8, 8), torch.randn(10, 2)
    model = Model([InputLayer((3, 8, 8)), Pool(), Pool(), Dense(2)])
    net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 2))
    model.copy_parameters(net.parameters)
    history = model.fit(x, y, 1, 0.1, 10, x, y, verbose=False)
    assert (history.path, history.reason) == ("general", "samples of shape (3, 8, 8) train layer by layer")
    loss = nn.functional.mse_loss(net(x), y)
    loss.backward()
    assert history.step_loss == [pytest.approx(loss.item(), rel=1e-5)]  # some roundings
    torch.testing.assert_close(model.layers[2].w, (net[2].weight - 0.1 * net[2].weight.grad).detach().T)
    assert model.evaluate(x, y) == history.valid_loss[0]


def test_public_names():
    assert sc.RelU is sc.ReLU
    assert not sc.InputLayer(2).is_trainable
    assert Dense(2).is_trainable
    assert not ReLU().is_trainable
    assert all(hasattr(sc, name) for name in sc.__all__)
    assert sc.MSE().loss(torch.ones(2, 2), torch.zeros(2, 2)) == 1.0
