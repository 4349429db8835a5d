"""Who trains the same network without torch.nn: JAX, scikit-learn, and the code of the two documents."""

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scratchcuda.bench.peers import Losses, Peer, Runner, batches
from scratchcuda.compare import Pair, Workload
from scratchcuda.ops._entries import MODULES


def documents(pair: Pair, work: Workload, validate: bool) -> Runner:
    """The formulas of the two documents, layer by layer, on plain tensors; they have no cross-entropy."""
    if work.loss is not nn.MSELoss:
        raise NotImplementedError("the documents define no cross-entropy")

    def tanh(z: Tensor) -> Tensor:
        e = torch.exp(-2 * z)
        return (1 - e) / (1 + e)

    def softmax(z: Tensor) -> Tensor:
        e = torch.exp(z - z.max(dim=1, keepdim=True)[0])
        return e / e.sum(1, keepdim=True)

    forward: dict[type[nn.Module], tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
        nn.Tanh: (tanh, lambda delta, a: delta * (1 - a**2)),
        nn.Softmax: (softmax, lambda delta, a: a * (delta - (delta * a).sum(1, keepdim=True))),
        nn.Sigmoid: (lambda z: 1 / (1 + torch.exp(-z)), lambda delta, a: delta * (a * (1 - a))),
        nn.ReLU: (lambda z: torch.max(z, torch.zeros_like(z)), lambda delta, a: delta * (1 * (a > 0))),
    }
    layers: list[dict[str, Any]] = []

    def predict(x: Tensor, keep: bool) -> Tensor:
        for layer in layers:
            if keep:
                layer["input"] = x.clone()
            x = layer["f"](torch.matmul(x, layer["w"]) + layer["b"])
            layer["a"] = x
        return x

    def run() -> Losses:
        layers.clear()
        for module in pair.net:
            if isinstance(module, nn.Linear):
                w, b = (p.detach().clone() for p in (module.weight.T, module.bias))
                layers.append({"w": w, "b": b, "f": lambda z: z, "df": lambda delta, a: delta})
            else:
                layers[-1]["f"], layers[-1]["df"] = forward[type(module)]
        train, valid = [], []
        for _ in range(work.epochs):
            steps = []
            for start in range(0, len(pair.y), work.batch_size):
                x, y = (data[start : start + work.batch_size] for data in (pair.x, pair.y))
                y_pred = predict(x, True)
                steps.append(((y_pred - y) ** 2).mean().item())
                delta = 2 * (y_pred - y) / y.numel()
                for layer in reversed(layers):
                    delta = layer["df"](delta, layer["a"])
                    layer["b"] -= work.lr * torch.sum(delta, dim=0)
                    w_der = torch.matmul(layer["input"].T, delta)
                    delta = torch.matmul(delta, layer["w"].T)
                    layer["w"] -= work.lr * w_der
            train.append(sum(steps) / len(steps))
            if validate:
                valid.append(((predict(pair.x_valid, False) - pair.y_valid) ** 2).mean().item())
        return train, valid

    return Runner(run, lambda: [tensor for layer in layers for tensor in (layer["w"].T, layer["b"])])


def jax(pair: Pair, work: Workload, validate: bool, whole: bool = True) -> Runner:
    """JAX: one jit of the whole fit, a scan over epochs of a scan over batches, or of a step, called in a loop."""
    if importlib.util.find_spec("jax") is None:
        raise NotImplementedError("not installed")
    _check_loss(work)
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_enable_x64", pair.x.dtype == torch.float64)
    jax.config.update("jax_default_device", jax.devices("gpu" if pair.x.is_cuda else "cpu")[0])
    jax.config.update("jax_default_matmul_precision", "highest")  # on a GPU float32 would be multiplied as TF32

    def as_jax(tensor: Tensor) -> Any:
        if not tensor.is_floating_point():
            return jnp.asarray(tensor.cpu().numpy())
        dtype = str(tensor.dtype).removeprefix("torch.")  # numpy has no bfloat16
        return jnp.asarray(tensor.detach().cpu().double().numpy()).astype(dtype)

    def as_torch(array: Any) -> Tensor:
        return torch.as_tensor(np.array(array.astype("float32") if array.dtype == jnp.bfloat16 else array))

    def function_of(module: nn.Module) -> Callable[..., Any]:
        name, parameters = MODULES[type(module)].checked("module", module)
        function = others.get(name) or getattr(jax.nn, name)  # of the name and the arguments of torch's
        return lambda z: function(z, *parameters)

    def softplus(z: Any, beta: float, threshold: float) -> Any:
        return jnp.where(beta * z > threshold, z, jax.nn.softplus(beta * z) / beta)

    others = {"gelu": partial(jax.nn.gelu, approximate=False), "gelu_tanh": jax.nn.gelu, "softplus": softplus}

    functions = [None if isinstance(module, nn.Linear) else function_of(module) for module in pair.net]
    x, y, *valid_data = (as_jax(data) for data in (pair.x, pair.y, pair.x_valid, pair.y_valid))
    count, full = -(-len(y) // work.batch_size), len(y) // work.batch_size
    cut = full * work.batch_size

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        params = iter(params)
        for function in functions:
            if function is None:
                w, b = next(params)
                x = x @ w + b
            else:
                x = function(x)
        if work.loss is nn.MSELoss:
            return ((x - y) ** 2).mean()
        return -jnp.take_along_axis(jax.nn.log_softmax(x, axis=1), y[:, None], axis=1).mean()

    def step(state: Any, batch: Any) -> Any:
        params, total = state
        loss, grads = jax.value_and_grad(loss_of)(params, *batch)
        return (jax.tree.map(lambda p, g: p - work.lr * g, params, grads), total + loss), None

    def epoch(params: Any, _: Any) -> Any:
        state, _ = jax.lax.scan(step, (params, zero), blocks)
        if cut < len(y):
            state, _ = step(state, (x[cut:], y[cut:]))
        params, total = state
        return params, (total / count, loss_of(params, *valid_data) if validate else total)

    blocks = [data[:cut].reshape(full, work.batch_size, *data.shape[1:]) for data in (x, y)]
    zero = jnp.zeros((), dtype="float64" if pair.x.dtype == torch.float64 else "float32")
    linears = [module for module in pair.net if isinstance(module, nn.Linear)]
    params = start = [(as_jax(module.weight.T), as_jax(module.bias)) for module in linears]
    fit = jax.jit(lambda params: jax.lax.scan(epoch, params, None, length=work.epochs))
    one, evaluate = jax.jit(step), jax.jit(loss_of)
    data = [tuple(as_jax(tensor) for tensor in batch) for batch in batches(pair, work)] if not whole else []

    def run() -> Losses:
        nonlocal params
        params, (train, valid) = fit(start)
        jax.block_until_ready(params)
        return train.tolist(), valid.tolist() if validate else []

    def run_steps() -> Losses:
        nonlocal params
        params, train, valid = start, [], []
        for _ in range(work.epochs):
            state = params, zero
            for batch in data:
                state, _ = one(state, batch)
            params, total = state
            train.append(float(total) / count)
            if validate:
                valid.append(float(evaluate(params, *valid_data)))
        jax.block_until_ready(params)
        return train, valid

    def parameters() -> list[Tensor]:
        return [as_torch(array) for w, b in params for array in (w.T, b)]

    return Runner(run if whole else run_steps, parameters)


def scikit_learn(pair: Pair, work: Workload, validate: bool) -> Runner:
    """MLPRegressor or MLPClassifier with plain gradient descent; it has no loss of given validation data."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from threadpoolctl import threadpool_limits

    _check_loss(work)
    names = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "logistic"}
    linears = [module for module in pair.net if isinstance(module, nn.Linear)]
    hidden = {names.get(type(module)) for module in pair.net if not isinstance(module, nn.Linear)}
    if pair.x.is_cuda:
        raise NotImplementedError("runs on a CPU only")
    if validate:
        raise NotImplementedError("has no loss of given validation data")
    if pair.x.dtype not in (torch.float32, torch.float64):
        raise NotImplementedError("computes in float32 and float64 only")
    if len(hidden) > 1 or None in hidden or len(pair.net) not in (len(linears), 2 * len(linears) - 1):
        raise NotImplementedError("has one activation, ReLU, tanh or sigmoid, between all layers")
    classes = linears[-1].out_features  # or targets
    if work.loss is nn.CrossEntropyLoss and (classes < 3 or pair.y.unique().numel() < classes):
        raise NotImplementedError("has one output for two classes, and none for a class without samples")
    threadpool_limits(torch.get_num_threads())
    x, y = pair.x.numpy(), pair.y.squeeze(-1).numpy()
    regressor = work.loss is nn.MSELoss
    model = (MLPRegressor if regressor else MLPClassifier)(
        hidden_layer_sizes=[linear.out_features for linear in linears[:-1]],
        activation=hidden.pop() if hidden else "identity",
        solver="sgd",
        # Of the squared error it takes half, and the mean over samples alone.
        learning_rate_init=work.lr * 2 / classes if regressor else work.lr,
        batch_size=work.batch_size,
        alpha=0.0,
        momentum=0.0,
        shuffle=False,
        tol=0.0,
        n_iter_no_change=2**31,  # never stops early
        max_iter=1,
        warm_start=True,
    )

    def fit() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # so many epochs are asked for
            model.fit(x, y)

    fit()  # sets up all but the parameters
    model.max_iter = work.epochs
    start = [p.detach().numpy() for p in pair.start]

    def run() -> Losses:
        model.coefs_ = [w.T.copy() for w in start[::2]]
        model.intercepts_ = [b.copy() for b in start[1::2]]
        fit()
        # It reports the mean over samples, which is torch's mean over batches if all have one size.
        factor = 2 if regressor else 1
        equal = len(x) % work.batch_size == 0
        return [factor * loss for loss in model.loss_curve_[-work.epochs :]] if equal else [], []

    def parameters() -> list[Tensor]:
        found = zip(model.coefs_, model.intercepts_, strict=True)
        return [torch.as_tensor(array) for w, b in found for array in (w.T, b)]

    return Runner(run, parameters)


def _check_loss(work: Workload) -> None:
    if work.loss not in (nn.MSELoss, nn.CrossEntropyLoss):
        raise NotImplementedError("written here for the squared error and cross-entropy alone")


def jax_steps(pair: Pair, work: Workload, validate: bool) -> Runner:
    return jax(pair, work, validate, whole=False)


OTHERS: dict[str, Peer] = {
    "JAX, jit of the step": jax_steps,
    "JAX, jit of the fit": jax,
    "scikit-learn": scikit_learn,
    "documents' code": documents,
}
