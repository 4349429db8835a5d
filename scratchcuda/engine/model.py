"""The Model: a stack of layers, trained by backpropagation written out by hand."""

import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scratchcuda._ranges import each, named
from scratchcuda.engine._patching import original, replaceable
from scratchcuda.engine.activations import KINDS, Activation, Layer
from scratchcuda.engine.exchange import layers_of, sequential_of, share
from scratchcuda.engine.layers import Dense, InputLayer
from scratchcuda.engine.losses import MSE, Losses, OfScores
from scratchcuda.engine.network import Task, network_of
from scratchcuda.engine.parameters import Slot, kept_apart, overlap, place_of, sharing
from scratchcuda.engine.plans import plan_of
from scratchcuda.engine.training import FitPath, Fitted, History, Step
from scratchcuda.ops import _checks


@replaceable
class Model(Fitted):
    """A network of layers and its loss.

    Weights and biases are drawn from N(0, 1), as in the documents that this package grew from. Layers of many inputs
    train badly from there, since their outputs are as wide as the root of their number: ``init="torch"`` suits them.

    Args:
        layers: an InputLayer, then Dense layers, activations and layers of your own, each object once.
        loss_f: the loss, :class:`MSE` if None.
        device: where the parameters are made and stay. If None they are made on torch's default device and move
            once, to the device of the first data they meet.
        dtype: floating-point dtype of the parameters, torch's default one if None.
        generator: source of the initial values, torch's default one if None.
        init: the distribution of the initial values that no layer says otherwise: "normal", or "torch" for those that
            torch.nn draws, the very same ones from the same seed.

    Attributes:
        layers: the layers without the InputLayer; ``layers[i].w`` and ``.b`` may be read and assigned.
        history: of the last fit, also of one that Ctrl-C ended; None before.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        loss_f: Losses | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        init: Literal["normal", "torch"] = "normal",
    ):
        _check_layers(layers)
        _checks.float_dtype(dtype)
        if init not in ("normal", "torch"):
            raise ValueError(f"init is {init!r}, expected 'normal' or 'torch'")
        self.layers = list(layers[1:])  # the input layer has done its work here
        self.loss_f = MSE() if loss_f is None else loss_f
        self.n_in = layers[0].n  # type: ignore[attr-defined]
        self.history: History | None = None
        self._may_move = device is None
        made = {"device": device, "dtype": dtype, "generator": generator}
        options = {name: value for name, value in made.items() if value is not None}
        of_dense: dict[str, Any] = {} if generator is None else {"generator": generator}
        if init == "torch":
            of_dense["init"] = init
            # The batch of the InputLayer, which torch.nn does not draw, is not drawn from the source of the values.
            options["generator"] = torch.Generator(torch.get_default_device() if device is None else device)
        with torch.inference_mode(False):  # or a model made there could not be trained
            out = layers[0].construct(**options)  # type: ignore[arg-type]
            self._like = out.new_empty(0)
            for layer in self.layers:
                out = layer.construct(out, **(of_dense if isinstance(layer, Dense) else {}))
        self.n_out = out.shape[-1]

    @property
    def loss_f(self) -> Losses:
        """The loss; a CrossEntropy after a last Softmax, a BinaryCrossEntropy after a Sigmoid, gets probabilities."""
        return self._loss_f

    @loss_f.setter
    def loss_f(self, loss_f: Losses) -> None:
        if not isinstance(loss_f, Losses):
            raise TypeError(f"loss_f is {loss_f!r}, expected a loss such as MSE()")
        last = getattr(self.layers[-1], "act_f", self.layers[-1])
        if getattr(vars(self).get("_loss_f"), "probabilities", False):  # for this model's loss before
            vars(last).pop("carries_scores", None)
        if isinstance(loss_f, OfScores) and isinstance(last, KINDS[loss_f.activation]):
            loss_f = copy.copy(loss_f)
            loss_f.probabilities = last.carries_scores = True
        self._loss_f = loss_f

    @classmethod
    def from_torch(cls, module: nn.Sequential, loss_f: Losses | None = None) -> "Model":
        """A model with copies of a Sequential's parameters, on their device, in their dtype, tied and frozen as there.

        Args:
            module: Linear layers with bias, the activations that we have, a Softmax over the last dimension, and
                Identity, of torch.nn or of scratchcuda.nn; Sequentials within it are unfolded. An activation right
                after a Linear becomes the Dense's.
            loss_f: the loss, :class:`MSE` if None.

        Raises:
            TypeError: for any other module, and for what a Model would not do as the module does: hooks, a forward of
                its own, parameters that are computed (pruned, parametrized), of several dtypes, or that share memory
                without being the same.
            ValueError: for a Linear without bias, no Linear, a Softmax over another dimension, or several devices.
        """
        layers, linears = layers_of(module)
        weight = linears[0].weight
        model = cls([InputLayer(weight.shape[1]), *layers], loss_f, device=weight.device, dtype=weight.dtype)
        model.copy_parameters(lambda: [p for linear in linears for p in (linear.weight, linear.bias)])
        share(model.layers, linears)
        return model

    def to_torch(self) -> nn.Sequential:
        """A torch.nn.Sequential with copies of the parameters, tied and frozen as they are.

        Methods patched onto our classes are not exported. Layers of your own, and parameters that share memory in other
        ways than as wholes (a transposed weight, say), raise TypeError.
        """
        return sequential_of(self.layers, list(self._slots()))

    def copy_parameters(self, parameters: Callable[[], Iterable[Tensor]]) -> None:
        """Copy the parameters of a torch module, in its order: ``model.copy_parameters(net.parameters)``.

        Args:
            parameters: the bound method of the module (or any function that gives its tensors), weights (n_out,
                n_in) before bias (n_out,).
        """
        if not callable(parameters):
            raise TypeError(f"parameters is {type(parameters).__name__}, expected a method such as net.parameters")
        given = list(parameters())
        slots = [
            s for s in self._slots() if s.owner.is_trainable or type(s.owner).is_trainable
        ]  # others have constants
        places = [place_of(slot.tensor) for slot in slots]
        expected = len(set(places))  # torch.nn gives parameters that are tied once
        if len(given) != expected:
            raise ValueError(f"parameters gives {len(given)} tensors, expected {expected}")
        by_place = dict(zip(dict.fromkeys(places), given, strict=True))
        given = [by_place[place] for place in places]
        with self._unchanged_on_error():
            for layer, of_layer in itertools.groupby(slots, lambda slot: slot.owner):
                layer.set_params(*[given.pop(0) for _ in of_layer])

    def predict(self, x: Any) -> Tensor:
        """Forward propagation: x (m, n_in) -> predictions (m, n_out)."""
        out = samples = self._data("x", x)
        self._settle(x)
        for layer in self.layers:
            out = layer.forward(out)
        if out is not samples:
            vars(out).pop("z", None)  # the input of a last activation, which a backward alone would need
        return out

    def __forward__(self, x: Any) -> Tensor:
        """The forward propagation of a training step: layers keep what backward needs."""
        out = self._data("x", x)
        self._settle(x)
        for _, layer in each("forward", enumerate(self.layers)):
            out = layer.__forward__(out)
        return out

    def evaluate(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """The loss of the predictions for x (m, n_in) against the targets y, as the loss takes them.

        Args:
            x, y: as :meth:`fit` takes them.
            sample_weight: factors of the samples (m,), for CrossEntropy.
        """
        samples, y = self._pair("x", x, "y", y)
        weights = {} if sample_weight is None else {"sample_weight": self._sample_weights(sample_weight, y)}
        self._settle(x)
        return self.loss_f(self.predict(samples), y, **weights)

    def update(
        self,
        y_pred: Tensor,
        y_true: Tensor,
        lr: float,
        weight_decay: float = 0.0,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Backpropagation and update, after ``y_pred = model.__forward__(x)``.

        Args:
            y_pred: the predictions (m, n_out).
            y_true: their targets, as the loss takes them.
            lr: learning rate.
            weight_decay: factor of the L2 penalty on weights, not on biases.
            sample_weight: factors of the samples (m,), for CrossEntropy.
        """
        _checks.non_negative("lr", lr)
        options = self._decay_options(_checks.non_negative("weight_decay", weight_decay))
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self._backpropagate(self.loss_f.backward(y_pred, y_true, **weights), lr, options)

    def _loss_and_gradient(self, y_pred: Tensor, y_true: Tensor, **weights: Tensor) -> tuple[float | Tensor, Tensor]:
        """Of a training step. Between a last activation and a loss that it belongs to, scores alone pass."""
        last, loss_f = self.layers[-1], self.loss_f
        activation = last.act_f if isinstance(last, Dense) and original(last) else last
        kind = KINDS[loss_f.activation] if isinstance(loss_f, OfScores) and loss_f.probabilities else None
        if not (kind and original(loss_f) and original(activation) is kind and hasattr(y_pred, "scores")):
            return loss_f.loss_and_gradient(y_pred, y_true, **weights)
        loss, delta = loss_f.objective(y_pred).of(y_pred.scores, y_true, **weights)
        delta.scores = delta.detach()  # type: ignore[attr-defined]
        return loss, delta

    def _backpropagate(self, delta: Tensor, lr: float, options: dict[str, float]) -> None:
        with self._kept_apart(lr, **options):
            for _, layer in each("backward", reversed(list(enumerate(self.layers)))):
                if isinstance(layer, Activation):
                    delta = layer.backward(delta, layer.a)
                else:
                    delta = layer.backward(delta, lr, **(options if layer.trained else {}))

    def fit(
        self,
        x_train: Any,
        y_train: Any,
        epochs: int,
        lr: float,
        batch_size: int,
        x_valid: Any = None,
        y_valid: Any = None,
        *,
        weight_decay: float = 0.0,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        plan: bool = True,
        verbose: bool = True,
        sample_weight: Any = None,
    ) -> History:
        """Train by mini-batch gradient descent; the last batch of an epoch may be smaller.

        Data are tensors of the parameters' dtype and device, or NumPy arrays, what has one (as pandas.DataFrame), or
        lists, which are converted, as are integers. Ctrl-C leaves the parameters as after the last finished step, and
        ``history`` as far as it came.

        Args:
            x_train: inputs (m, n_in).
            y_train: targets (m, n_out), or (m,) for one output; for CrossEntropy class indices (m,), or rows of
                probabilities (m, n_out).
            epochs: number of passes over the data.
            lr: learning rate.
            batch_size: samples of a step.
            x_valid, y_valid: validation data, both or neither.
            weight_decay: factor of the L2 penalty on weights, not on biases.
            shuffle: draw a new order of the samples before each epoch.
            generator: source of the orders, torch's default one if None.
            plan: False trains layer by layer even where a plan could serve.
            verbose: print a line after each epoch.
            sample_weight: factors of the samples (m,), finite and at least 0, for CrossEntropy: the loss of a batch is
                ``sum w_i l_i / sum w_i``. The loss on the validation data has none.

        Returns:
            the history, also kept as ``model.history``.

        Raises:
            ValueError, TypeError: for arguments that do not fit, before anything has changed.
        """
        train = "x_train", x_train, "y_train", y_train
        how = epochs, lr, batch_size, weight_decay, shuffle, generator, plan, verbose
        return self._fit(train, x_valid, y_valid, *how, sample_weight)

    def _planned(self, task: Task) -> FitPath | str:
        network = network_of(self.layers, self.loss_f, (self.n_in, self.n_out), task.x)
        return network if isinstance(network, str) else plan_of(self, network, task)

    def _general_step(self, lr: float, options: dict[str, float]) -> Step:
        self._kept_apart(lr, **options)  # raises before anything has changed

        def step(x: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> float | Tensor:
            weights = {} if sample_weight is None else {"sample_weight": sample_weight}
            y_pred = self.__forward__(x)
            if original(self):
                with named("loss"):
                    loss, delta = self._loss_and_gradient(y_pred, y, **weights)
                self._backpropagate(delta, lr, options)
                return loss
            with named("loss"):
                mean = self.loss_f(y_pred, y, **weights)
            with named("backward"):
                self.update(y_pred, y, lr, **options, **weights)  # type: ignore[arg-type]
            return mean

        return step

    def _print(self, epoch: int, history: History) -> None:
        line = f"Epoch: {epoch} - L: {history.loss[-1]:.4f}"
        print(line + (f" - L_v {history.valid_loss[-1]:.4f}" if history.valid_loss else ""))

    def __repr__(self) -> str:
        layers = "".join(f"  {layer!r},\n" for layer in (InputLayer(self.n_in), *self.layers))
        return f"Model([\n{layers}], {self.loss_f!r})"

    def _slots(self) -> Iterator[Slot]:
        for i, layer in enumerate(self.layers):
            for name in layer.parameter_names:
                # A frozen layer has them all the same, an activation has none.
                if layer.is_trainable or isinstance(getattr(layer, name, None), Tensor):
                    yield Slot(f"layers.{i}.{name}", layer, name)

    def _kept_apart(self, lr: float, weight_decay: float = 0.0) -> AbstractContextManager[None]:
        """In which layers are updated: :func:`scratchcuda.engine.parameters.kept_apart`, of parameters that need it.

        Raises:
            ValueError, TypeError: if there is no right way to update them.
        """
        slots = list(self._slots())
        shared = {slot.name for slot in sharing(slots)}
        trained = {slot.name for slot in slots if slot.attribute in slot.owner.trained}
        patched = {slot.name for slot in slots if original(slot.owner) is not Dense}
        for slot, other in itertools.permutations([slot for slot in slots if slot.name in shared], 2):
            if slot.name in trained and other.name not in trained and overlap(slot.tensor, other.tensor):
                raise ValueError(f"{slot.name} shares memory with {other.name}, which is frozen, expected both or none")
        if weight_decay and (unknown := sorted(shared & trained & patched)):
            raise TypeError(
                f"weight_decay is {weight_decay}, but {unknown[0]} is shared, and its layer has methods of its own"
            )
        chosen = [slot for slot in slots if slot.name in shared or slot.name in patched - trained]
        rates = {"w": lr * weight_decay}
        return kept_apart(chosen, [rates.get(s.attribute, 0.0) if s.name in trained else None for s in chosen])

    def _data(self, name: str, x: Any, beside: Tensor | None = None) -> Tensor:
        x = super()._data(name, x, beside)
        _checks.features(name, x, self.n_in)
        return x

    def _pair(self, x_name: str, x: Any, y_name: str, y: Any, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets that fit each other and this model."""
        x = self._data(x_name, x, beside)
        if x.dim() != 2:
            raise ValueError(f"{x_name} has shape {tuple(x.shape)}, expected (samples, {self.n_in})")
        _checks.not_empty(x_name, x)
        y = y if isinstance(y, Tensor) else _checks.as_tensor(y_name, y).to(x.device)
        _checks.same_length(y_name, y, x_name, x)
        return x, self.loss_f.as_targets(y_name, y, (x.shape[0], self.n_out), x)

    def _sample_weights(self, given: Any, y: Tensor) -> Tensor:
        """Weights of the samples with these targets; methods that do not know them must not lose them silently."""
        for owner, method in ((self.loss_f, "loss"), (self.loss_f, "backward"), (self, "update")):
            if "sample_weight" not in inspect.signature(getattr(owner, method)).parameters:
                raise TypeError(f"sample_weight is given, but {type(owner).__name__}.{method} has no such argument")
        weights = _checks.weights("sample_weight", given)
        if isinstance(given, Tensor):
            _checks.on_device("sample_weight", given, "the targets", y.device)
        _checks.same_length("sample_weight", weights, "the targets", y)
        return weights.to(y.device, self.dtype)

    def _decay_options(self, weight_decay: float) -> dict[str, float]:
        """Weight decay goes only to methods that know it; a patched backward without it must not lose it silently."""
        if not weight_decay:
            return {}
        trained = [layer for layer in self.layers if layer.trained]
        for method in (self.update, *(layer.backward for layer in trained)):  # type: ignore[attr-defined]
            if "weight_decay" not in inspect.signature(method).parameters:
                raise TypeError(f"weight_decay is {weight_decay}, but {method.__qualname__} has no such argument")
        return {"weight_decay": weight_decay}


def _check_layers(layers: Sequence[Layer]) -> None:
    if not isinstance(layers, Sequence) or not layers or not isinstance(layers[0], InputLayer):
        raise ValueError(f"layers is {layers!r}, expected a list that starts with an InputLayer")
    if len(layers) == 1:
        raise ValueError("layers holds only an InputLayer, expected at least one layer after it")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer) or (i > 0 and isinstance(layer, InputLayer)):
            raise TypeError(f"layers[{i}] is {layer!r}, expected a Dense, an activation or a Layer of your own")
        if any(layer is earlier for earlier in layers[:i]):
            raise ValueError(f"layers[{i}] is {layer!r}, which stands in the list already; expected a new object")
