"""What every fit shares: its checks, the choice of its path, and the loop over the epochs."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from scratchcuda._ranges import named
from scratchcuda.engine._patching import original
from scratchcuda.engine.course import Course
from scratchcuda.engine.diagnosis import cause_of_nan
from scratchcuda.engine.early_stopping import EarlyStopping
from scratchcuda.engine.history import History
from scratchcuda.engine.interrupt import HeldInterrupt
from scratchcuda.engine.network import Task
from scratchcuda.engine.optimizers import Optimizer
from scratchcuda.engine.parameters import Parameters
from scratchcuda.engine.progress import bar_class


class FitPath:
    """One way to run the steps of a fit: a plan, or the general path.

    Attributes:
        name, reason, graph_bytes: as of the History.
        accuracy, valid_accuracy: of the last epoch and the last validation, where the task asks for them.
        held: the tensors that hold what may be trained while the fit runs, always as many.
        task: what is trained on, whose learning rate is that of the epoch to come.
    """

    name: str
    reason: str = ""
    graph_bytes: int = 0
    accuracy: float
    valid_accuracy: float
    task: Task

    def mode(self) -> AbstractContextManager[object]:
        """The context in which all the others are called."""
        raise NotImplementedError

    @property
    def held(self) -> list[Tensor]:
        raise NotImplementedError

    def load(self, order: Tensor | None) -> None:
        """Take the training data in this order of task.samples samples; None is the order given."""
        raise NotImplementedError

    def epoch(self, stop: HeldInterrupt, losses: list[float]) -> None:
        """Run one step for each batch, with stop.check() after it; append the losses of all that ran."""
        raise NotImplementedError

    def validate(self) -> float:
        """The loss on the validation data."""
        raise NotImplementedError

    def publish(self) -> None:
        """Let the layers' parameters, and the optimizer's state, be those after the last finished step."""

    def adopt(self) -> None:
        """Go on with what has been written into either since."""

    def finish(self) -> None:
        """Leave both as after the last finished step."""


#: Trains on the inputs and targets of a batch, and its sample weights if there are any. Gives their loss, and the
#: predictions before the update.
Step = Callable[..., tuple[float | Tensor, Tensor]]


class GeneralPath(FitPath):
    """The steps of a model layer by layer, through whatever methods its objects have."""

    name = "general"

    def __init__(self, reason: str, model: "Fitted", step: Step, task: Task):
        self.reason, self.model, self.step, self.task = reason, model, step, task

    def mode(self) -> AbstractContextManager[object]:
        return torch.no_grad()

    @property
    def held(self) -> list[Tensor]:
        return [slot.tensor for slot in self.model._slots()]  # a callback may freeze some, or unfreeze

    def load(self, order: Tensor | None) -> None:
        data = [self.task.x, self.task.y, *([] if self.task.sample_weights is None else [self.task.sample_weights])]
        chosen = slice(self.task.samples) if order is None else order
        self.batches = list(zip(*(part[chosen].split(self.task.batch_size) for part in data), strict=True))

    def epoch(self, stop: HeldInterrupt, losses: list[float]) -> None:
        found: list[float | Tensor] = []  # tensors stay on their device: to read one is to wait for it
        hits: list[Tensor] = []
        try:
            for batch in self.batches:
                with named("step"):
                    loss, y_pred = self.step(*batch)
                found.append(loss)
                if self.task.accuracy:
                    hits.append(self.model.loss_f.hits(y_pred, batch[1]))
                stop.check()
        finally:
            scalars = [loss for loss in found if isinstance(loss, Tensor) and loss.dim() == 0]
            losses += torch.stack(scalars).tolist() if scalars and len(scalars) == len(found) else map(float, found)
        if hits:
            self.accuracy = _share(torch.cat(hits))

    def validate(self) -> float:
        assert self.task.valid is not None
        x, y = self.task.valid
        if self.task.accuracy:
            self.valid_accuracy = _share(self.model.loss_f.hits(self.model.predict(x), y))
        return self.model.evaluate(x, y)


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / hits.numel()


class Fitted(Parameters):
    """Base class of the models. A subclass says what its data are, which plan serves it, and what a step is."""

    history: History | None
    #: Of the last fit, with its state; None before.
    optimizer: Optimizer | None = None
    loss_f: Any
    #: Inputs and targets that fit each other and the model, from both with their names, beside other data.
    _pair: Callable[..., tuple[Tensor, Tensor]]
    #: What its update takes of an optimizer, besides the learning rate; an error where a method does not know it.
    _update_options: Callable[[Optimizer], dict[str, Any]]
    #: A plan in place of methods that nobody has patched, or the reason why there is none.
    _planned: Callable[[Task], FitPath | str]
    #: The step of the general path, at the task's learning rate, with these options of update.
    _general_step: Callable[[Task, dict[str, Any]], Step]
    predict: Callable[[Any], Tensor]
    evaluate: Callable[..., float]
    #: Weights of the samples with these targets, as given; an error where the loss takes none.
    _sample_weights: Callable[[Any, Tensor], Tensor]
    #: What the printed line of an epoch begins with, and what stands in it of the last one.
    _epoch: str
    _figures: Callable[[History], str]

    def _fit(
        self,
        data: tuple[str, Any, str, Any],
        x_valid: Any,
        y_valid: Any,
        course: Course,
        sample_weight: Any = None,
    ) -> History:
        """Fit, by the arguments of Model.fit; data are inputs and targets, each after its name."""
        optimizer, lr = course.optimizer, course.lr.of(0)
        options = self._update_options(optimizer)
        course.check_validation(x_valid, y_valid)
        x, y = self._pair(*data)
        weights = None if sample_weight is None else self._sample_weights(sample_weight, y)
        trained, valid = course.trained(samples := y.shape[0]), None
        if trained < samples:
            valid = x[trained:], y[trained:]
            x, y, weights = x[:trained], y[:trained], None if weights is None else weights[:trained]
        elif x_valid is not None or y_valid is not None:
            valid = self._pair("x_valid", x_valid, "y_valid", y_valid, beside=x)
        self._settle(data[1])
        size = min(course.batch_size, trained)
        task = Task(x, y, size, lr, optimizer, valid, weights, course.lr.varies, course.drop_last, course.accuracy)
        if optimizer.kinds:
            optimizer.begin({slot.name: slot.tensor for slot in self._slots() if slot.is_trained})
        path: FitPath | str = "the model has methods of its own"
        if not course.plan:
            path = "asked for"
        elif original(self):
            path = self._planned(task)
        if isinstance(path, str):
            path = GeneralPath(path, self, self._general_step(task, options), task)
        self.history, self.optimizer = History(path.name, path.reason), optimizer
        self._run(course, path, self.history, (data[0], data[2]))
        return self.history

    def _run(self, course: Course, path: FitPath, history: History, names: tuple[str, str]) -> None:
        """The epochs of a fit, of data with these names."""
        task, generator, has_grad = path.task, course.generator, torch.is_grad_enabled()
        samples, device = task.y.shape[0], task.y.device if generator is None else generator.device  # of the orders
        stopping = None if course.early_stopping is None else EarlyStopping(course.early_stopping)
        is_nan = False
        with HeldInterrupt() as stop, _bar(course) as bar, path.mode():
            try:
                for epoch in range(course.epochs):
                    task.lr = course.lr.of(epoch) if epoch else task.lr
                    if course.shuffle:
                        path.load(torch.randperm(samples, generator=generator, device=device)[: task.samples])
                    elif epoch == 0:
                        path.load(None)
                    done = len(history.step_loss)
                    path.epoch(stop, history.step_loss)
                    losses = history.step_loss[done:]
                    history.loss.append(sum(losses) / len(losses))
                    history.lr.append(task.lr)
                    if task.accuracy:
                        history.accuracy.append(path.accuracy)
                    if task.valid is not None:
                        history.valid_loss.append(path.validate())
                        if task.accuracy:
                            history.valid_accuracy.append(path.valid_accuracy)
                    course.lr.advance((history.valid_loss or history.loss)[-1])
                    if not is_nan and math.isnan(history.loss[-1]):
                        is_nan = True
                        self._warn_of_nan(task, history, names)
                    if stopping:
                        stopping.see(history, path.held)
                    if bar is not None:
                        bar.set_postfix_str(self._figures(history), refresh=False)
                        bar.update()
                    elif course.verbose:
                        print(f"{self._epoch}: {epoch} - {self._figures(history)}")
                    if course.callbacks:
                        self._call(course.callbacks, history, path, has_grad)
                    stop.check()
                    if history.stopped:
                        break
                if stopping:
                    stopping.restore(history, path.held)
            finally:
                path.finish()
                if not course.optimizer.kinds:  # or what updates by its state has counted
                    course.optimizer.steps += len(history.step_loss)
                history.graph_bytes = path.graph_bytes

    def _call(
        self, callbacks: Sequence[Callable[[History], object]], history: History, path: FitPath, has_grad: bool
    ) -> None:
        """Callbacks at the end of an epoch. What they write into parameters counts, also before an error."""
        before = [(slot, slot.tensor, slot.is_trained) for slot in self._slots()]
        path.publish()
        try:
            with torch.inference_mode(False), torch.set_grad_enabled(has_grad):
                for callback in callbacks:
                    callback(history)
        finally:
            path.adopt()
        changed = [of for of in before if of[0].tensor is not of[1] or of[0].is_trained != of[2]]
        if changed and not isinstance(path, GeneralPath):
            slot, tensor, _ = changed[0]
            what = "frozen or unfrozen" if slot.tensor is tensor else "assigned anew"
            for slot_before, tensor_before, _ in before:
                setattr(slot_before.owner, slot_before.attribute, tensor_before)
            raise RuntimeError(
                f"{slot.name} was {what} by a callback, which a {path.name} does not see, expected a parameter that is "
                "written into in place, or fit(plan=False)"
            )

    def _warn_of_nan(self, task: Task, history: History, names: tuple[str, str]) -> None:
        step = next((i for i, loss in enumerate(history.step_loss) if math.isnan(loss)), None)
        if step is None:  # a loss of one's own may be inf and -inf
            return
        data = list(zip(names, (task.x, task.y), strict=True))
        cause = cause_of_nan(data, history.step_loss[:step], task.lr, self.dtype)
        where = f"epoch {len(history.loss) - 1}, step {step}"
        warnings.warn(f"the loss is NaN from {where} on (counted from 0): {cause}", RuntimeWarning, stacklevel=5)


def _bar(course: Course) -> AbstractContextManager[Any]:
    return bar_class()(total=course.epochs, unit="epoch") if course.progress else nullcontext()
