"""The Model: a stack of layers, trained by backpropagation written out by hand."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from scratchcuda._ranges import each, named
from scratchcuda.engine import stack
from scratchcuda.engine._patching import original, replaceable
from scratchcuda.engine.activations import KINDS, Activation, Layer
from scratchcuda.engine.course import Course
from scratchcuda.engine.exchange import copy_into, layers_of, parameters_of, sequential_of, share
from scratchcuda.engine.history import History
from scratchcuda.engine.layers import Dense, Flatten, InputLayer
from scratchcuda.engine.losses import MSE, Losses, OfScores
from scratchcuda.engine.network import Task, network_of
from scratchcuda.engine.optimizers import Optimizer, update_options
from scratchcuda.engine.parameters import Slot
from scratchcuda.engine.plans import plan_of
from scratchcuda.engine.sharing import kept_apart
from scratchcuda.engine.training import FitPath, Fitted, Step
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
        optimizer: of the last fit, with its state; None before.
    """

    _epoch = "Epoch"

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
        stack.check(layers)
        _checks.float_dtype(dtype)
        if init not in ("normal", "torch"):
            raise ValueError(f"init is {init!r}, expected 'normal' or 'torch'")
        self.layers = list(layers[1:])  # the input layer has done its work here
        self.loss_f = MSE() if loss_f is None else loss_f
        self.n_in = layers[0].n  # type: ignore[attr-defined]
        self._shape = layers[0].shape  # type: ignore[attr-defined]
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
            self._shapes = [self._shape]  # of the outputs for a sample
            for layer in self.layers:
                out = layer.construct(out, **(of_dense if isinstance(layer, Dense) else {}))
                self._shapes.append(tuple(out.shape[1:]))
        if out.dim() != 2:
            raise ValueError(
                f"layers give {tuple(out.shape[1:])} for a sample, expected (n_out,), as a Flatten makes it"
            )
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
            module: Linear layers, the activations that we have, a Softmax over the last dimension, Dropout, Flatten
                and Identity, of torch.nn or of scratchcuda.nn; Sequentials within it are unfolded. An activation right
                after a Linear becomes the Dense's. A Dropout drops in every fit, whatever mode the module is in.
            loss_f: the loss, :class:`MSE` if None.

        Raises:
            TypeError: for any other module, and for what a Model would not do as the module does: hooks, a forward of
                its own, parameters that are computed (pruned, parametrized), of several dtypes, or that share memory
                without being the same.
            ValueError: for no Linear, a Softmax over another dimension, or several devices.
        """
        layers, linears = layers_of(module)
        weight = linears[0].weight
        model = cls([InputLayer(weight.shape[1]), *layers], loss_f, device=weight.device, dtype=weight.dtype)
        model.copy_parameters(lambda: [p for linear in linears for p in parameters_of(linear)])
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
        slots = [
            s for s in self._slots() if s.owner.is_trainable or type(s.owner).is_trainable
        ]  # others have constants
        with self._unchanged_on_error():
            copy_into(slots, parameters)

    def __call__(self, x: Any) -> Tensor:
        """As :meth:`predict`."""
        return self.predict(x)

    def predict(self, x: Any) -> Tensor:
        """Forward propagation: x (m, n_in), or samples of the InputLayer's shape -> predictions (m, n_out)."""
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
        optimizer: Optimizer | None = None,
    ) -> None:
        """Backpropagation and update, after ``y_pred = model.__forward__(x)``.

        Args:
            y_pred: the predictions (m, n_out).
            y_true: their targets, as the loss takes them.
            lr: learning rate.
            weight_decay: factor of the L2 penalty on weights, not on biases.
            sample_weight: factors of the samples (m,), for CrossEntropy.
            optimizer: takes the step instead of plain gradient descent, with its own weight decay.
        """
        _checks.non_negative("lr", lr)
        options = self._update_options(optimizer or Optimizer(weight_decay=weight_decay))
        if optimizer is not None and weight_decay:
            raise ValueError(f"weight_decay is {weight_decay}, expected that of the optimizer alone")
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self._backpropagate(self.loss_f.backward(y_pred, y_true, **weights), lr, **options)

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

    def _backpropagate(
        self, delta: Tensor, lr: float, weight_decay: float = 0.0, optimizer: Optimizer | None = None
    ) -> None:
        decay = {"weight_decay": weight_decay} if weight_decay else {}
        gradients: dict[int, dict[str, Tensor]] = {}
        with kept_apart(self._slots(), lr, weight_decay, optimizer):
            for i, layer in each("backward", reversed(list(enumerate(self.layers)))):
                if isinstance(layer, Activation):
                    delta = layer.backward(delta, layer.a)
                elif optimizer is None or not layer.trained:
                    delta = layer.backward(delta, lr, **(decay if layer.trained else {}))
                else:
                    delta = layer.backward(delta, lr, gradients=gradients.setdefault(i, {}))
        if optimizer is not None:
            found = {f"layers.{i}.{name}": value for i, of_i in gradients.items() for name, value in of_i.items()}
            with named("update"):
                optimizer.step([slot for slot in self._slots() if slot.is_trained], found, lr)

    def fit(
        self,
        x_train: Any,
        y_train: Any,
        epochs: int,
        lr: float | Callable[[int], float] | LRScheduler,
        batch_size: int,
        x_valid: Any = None,
        y_valid: Any = None,
        *,
        weight_decay: float | None = None,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        plan: bool = True,
        verbose: bool = True,
        sample_weight: Any = None,
        optimizer: str | Optimizer = "sgd",
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        callbacks: Callable[[History], object] | Sequence[Callable[[History], object]] = (),
        early_stopping: int | None = None,
        drop_last: bool = False,
        validation_split: float = 0.0,
        accuracy: bool = False,
        progress: bool = False,
    ) -> History:
        """Train by mini-batches; the last one of an epoch may be smaller.

        Data are tensors of the parameters' dtype and device, or NumPy arrays, what has one (as pandas.DataFrame), or
        lists, which are converted, as are integers. Ctrl-C leaves the parameters as after the last finished step, and
        ``history`` as far as it came.

        Args:
            x_train: inputs (m, n_in).
            y_train: targets (m, n_out), or (m,) for one output; for CrossEntropy class indices (m,), or rows of
                probabilities (m, n_out).
            epochs: number of passes over the data.
            lr: learning rate: a number; a function of the epoch, from 0, that gives one; or a scheduler of
                torch.optim.lr_scheduler, of an optimizer with one parameter group. This then sets the rate, from which
                it is read before each epoch, and steps after it, a ReduceLROnPlateau by the loss on the validation
                data, or else by the training loss.
            batch_size: samples of a step.
            x_valid, y_valid: validation data, both or neither.
            weight_decay: of weights, not of biases: factor of the L2 penalty, or, of "adamw", of what each step takes
                off them, times lr. None is the default of torch.optim, 0.01 for "adamw" and 0 for the others.
            shuffle: draw a new order of the samples before each epoch.
            generator: source of the orders, torch's default one if None.
            plan: False trains layer by layer even where a plan could serve.
            verbose: print a line after each epoch.
            sample_weight: factors of the samples (m,), finite and at least 0, for CrossEntropy: the loss of a batch is
                ``sum w_i l_i / sum w_i``. The loss on the validation data has none.
            optimizer: "sgd", "adam" or "adamw", as torch.optim's, which begin anew; or an Optimizer, as
                ``model.optimizer`` of the last fit, which goes on with its options and its state.
            momentum, dampening, nesterov: of "sgd", as of torch.optim.SGD.
            betas, eps, amsgrad: of "adam" and "adamw", as of torch.optim.Adam and AdamW.
            callbacks: a callable or several, called with the history at the end of each epoch; what they return is
                ignored. The parameters are up to date, and may be written into in place; ``history.stop("why")`` ends
                the fit. Grad mode is the caller's. An error of theirs goes through and leaves the parameters as after
                the last finished step, with what callbacks have written.
            early_stopping: stop after so many epochs in a row without a better validation loss. However the last epoch
                came, the parameters of the best one are restored (``history.best_epoch``), as they were when it was
                validated; not after Ctrl-C or an error. An optimizer's state stays that of the last step.
            drop_last: leave out a last batch that is smaller than the others.
            validation_split: the share of the data, its last samples before any shuffling, that validates in place of
                ``x_valid`` and ``y_valid``; from 0 for none to below 1.
            accuracy: count how often predictions are right, for CrossEntropy and BinaryCrossEntropy:
                ``history.accuracy``, of each batch before its update, and ``history.valid_accuracy``. Of several
                classes the largest counts, of an output for two classes a probability of at least 1/2.
            progress: show a bar over the epochs in place of the lines; it needs tqdm.

        Returns:
            the history, also kept as ``model.history``; the optimizer that was used is ``model.optimizer``.

        Raises:
            ValueError, TypeError: for arguments that do not fit, before anything has changed; for the rate of a later
                epoch that is no finite number of at least 0, after the epoch before.
            ImportError: for ``progress`` without tqdm.
            RuntimeError: if a callback assigns a parameter anew, freezes or unfreezes one, while a plan trains.

        Warns:
            RuntimeWarning: once, when the loss has become NaN, with the likely cause.
        """
        course = Course(
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            weight_decay=weight_decay,
            shuffle=shuffle,
            generator=generator,
            plan=plan,
            verbose=verbose,
            optimizer=optimizer,
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            betas=betas,
            eps=eps,
            amsgrad=amsgrad,
            callbacks=callbacks,
            early_stopping=early_stopping,
            drop_last=drop_last,
            validation_split=validation_split,
            accuracy=accuracy,
            progress=progress,
        )
        course.check_loss(self.loss_f)
        return self._fit(("x_train", x_train, "y_train", y_train), x_valid, y_valid, course, sample_weight)

    def _planned(self, task: Task) -> FitPath | str:
        network = network_of(self.layers, self.loss_f, (self.n_in, self.n_out), task.x)
        return network if isinstance(network, str) else plan_of(self, network, task)

    def _general_step(self, task: Task, options: dict[str, Any]) -> Step:
        kept_apart(self._slots(), task.lr, **options)  # raises before anything has changed

        def step(x: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> tuple[float | Tensor, Tensor]:
            weights: dict[str, Any] = {} if sample_weight is None else {"sample_weight": sample_weight}
            y_pred = self.__forward__(x)
            if original(self):
                with named("loss"):
                    loss, delta = self._loss_and_gradient(y_pred, y, **weights)
                self._backpropagate(delta, task.lr, **options)
                return loss, y_pred
            with named("loss"):
                mean = self.loss_f(y_pred, y, **weights)
            with named("backward"):
                self.update(y_pred, y, task.lr, **options, **weights)
            return mean, y_pred

        return step

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_shape": (state["n_in"],)} | state)  # pickles of before samples had shapes lack it

    def _figures(self, history: History) -> str:
        found = f"L: {history.loss[-1]:.4f}" + (f" - L_v {history.valid_loss[-1]:.4f}" if history.valid_loss else "")
        found += f" - A: {history.accuracy[-1]:.4f}" if history.accuracy else ""
        return found + (f" - A_v {history.valid_accuracy[-1]:.4f}" if history.valid_accuracy else "")

    def __repr__(self) -> str:
        layers = "".join(f"  {layer!r},\n" for layer in (InputLayer(self._shape), *self.layers))
        return f"Model([\n{layers}], {self.loss_f!r})"

    def summary(self) -> None:
        """Print a table of the layers: output shapes, numbers of parameters, of how many frozen ones, and totals.

        The shapes are those that the layers had when they were constructed; none is called.
        """
        print(stack.table([InputLayer(self._shape), *self.layers], self._shapes, list(self._slots())))

    def _slots(self) -> Iterator[Slot]:
        for i, layer in enumerate(self.layers):
            for name in layer.parameter_names:
                # A frozen layer has them all the same, an activation has none.
                if layer.is_trainable or isinstance(getattr(layer, name, None), Tensor):
                    yield Slot(f"layers.{i}.{name}", layer, name)

    def _data(self, name: str, x: Any, beside: Tensor | None = None) -> Tensor:
        x = super()._data(name, x, beside)
        flattens = original(self.layers[0]) is Flatten
        if len(self._shape) == 1 and not flattens:
            _checks.features(name, x, self.n_in)
        elif x.dim() < 2 or (math.prod(x.shape[1:]) != self.n_in if flattens else x.shape[1:] != self._shape):
            expected = ", ".join(["samples", *map(str, self._shape)])
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected ({expected})")
        return x.flatten(1) if flattens else x  # so that plans see rows

    def _pair(self, x_name: str, x: Any, y_name: str, y: Any, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets that fit each other and this model."""
        x = self._data(x_name, x, beside)
        if len(self._shape) == 1 and x.dim() != 2:
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

    def _update_options(self, optimizer: Optimizer) -> dict[str, Any]:
        own = (layer for layer in self.layers if layer.trained and original(layer) is not Dense)
        backwards = (layer.backward for layer in own)  # type: ignore[attr-defined]
        return update_options(optimizer, [] if original(self) else [self.update], backwards)
