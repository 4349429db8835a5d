"""What updates the parameters of a model from their gradients: plain SGD, SGD with momentum, Adam and AdamW."""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scratchcuda import ops
from scratchcuda.engine.parameters import Slot, like, storage_of, whole
from scratchcuda.ops import _checks

#: By name, the options besides weight_decay.
_OF_ADAM = ("betas", "eps", "amsgrad")
OPTIONS = {"sgd": ("momentum", "dampening", "nesterov"), "adam": _OF_ADAM, "adamw": _OF_ADAM}


class Optimizer:
    """An optimizer with its options, those of torch.optim's SGD, Adam and AdamW, and the state of its parameters.

    A fit leaves the one that it has used as ``model.optimizer``; ``fit(optimizer=model.optimizer)`` goes on with it.

    Args:
        name: "sgd", "adam" or "adamw".
        weight_decay: of weights, not of biases: factor of the L2 penalty, or, of "adamw", of what each step takes off
            them, times the learning rate. None is the default of torch.optim: 0.01 for "adamw", 0 for the others.
        momentum, dampening, nesterov: of "sgd".
        betas, eps, amsgrad: of "adam" and "adamw".

    Attributes:
        steps: how many steps it has made.
        state: by the parameter's name in the state_dict, tensors of its shape, dtype and device: with momentum
            ``momentum_buffer``; ``exp_avg`` and ``exp_avg_sq``, with amsgrad ``max_exp_avg_sq``. Empty for plain SGD.

    Raises:
        ValueError, TypeError: for options that are none, or belong to another.
    """

    def __init__(
        self,
        name: str = "sgd",
        *,
        weight_decay: float | None = None,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
    ):
        _checks.one_of("optimizer", name, OPTIONS)
        self.name = name
        usual = 0.01 if name == "adamw" else 0.0
        self.weight_decay = _checks.non_negative("weight_decay", usual if weight_decay is None else weight_decay)
        self.momentum = _checks.non_negative("momentum", momentum)
        self.dampening = _checks.finite("dampening", dampening)
        self.betas = _checks.betas(betas)
        self.eps = _checks.non_negative("eps", eps)
        for flag, value in (("nesterov", nesterov), ("amsgrad", amsgrad)):
            _checks.flag(flag, value)
        self.nesterov, self.amsgrad = nesterov, amsgrad
        for option in _FOREIGN[name]:
            if (other := getattr(self, option)) != DEFAULTS[option]:
                raise ValueError(f"{option} is {other}, but optimizer {name!r} has no such option")
        _checks.nesterov(nesterov, momentum, dampening)
        self.steps = 0
        self.state: dict[str, dict[str, Tensor]] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """What its state holds for each parameter; nothing for plain SGD."""
        if self.name == "sgd":
            return ("momentum_buffer",) if self.momentum else ()
        return ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.amsgrad else []))

    @property
    def options(self) -> tuple[object, ...]:
        """What tells it from another but for its state, hashable."""
        return self.name, self.weight_decay, *(getattr(self, name) for name in OPTIONS[self.name])

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """Have state for these parameters, by name, of their dtype and on their device.

        Raises:
            ValueError: if it has made steps without one of them, or on one of another shape; nothing has changed then.
        """
        if not self.kinds:
            return
        for name, tensor in parameters.items() if self.steps else ():
            if name not in self.state:
                raise ValueError(
                    f"optimizer has no state of {name}, which its {self.steps} steps did not train; expected one that "
                    "begins anew, or the parameters that it knows"
                )
            for kind, value in self.state[name].items():
                _checks.shape(f"optimizer.state[{name!r}][{kind!r}]", value, tuple(tensor.shape))
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in parameters.items():
                if self.steps:
                    self.state[name] = {kind: value.to(tensor) for kind, value in self.state[name].items()}
                else:
                    self.state[name] = {kind: torch.zeros_like(tensor, requires_grad=False) for kind in self.kinds}

    def decays(self, attribute: str) -> bool:
        """Whether a layer's parameter of this name does: weights do, biases do not."""
        return attribute == "w" and self.weight_decay > 0

    def states(self, names: Sequence[str]) -> list[list[Tensor]]:
        """A list for each kind, of these parameters' state."""
        return [[self.state[name][kind] for name in names] for kind in self.kinds]

    def rates(self, lr: float, steps: int) -> Tensor:
        """The numbers of the steps to come at this rate, (steps, 1) or (steps, 3), as ops take them from a device."""
        if self.name == "sgd":
            return torch.full((steps, 1), lr, dtype=torch.float64, device="cpu")
        beta1, beta2 = self.betas
        numbers = [(lr, 1 - beta1**t, math.sqrt(1 - beta2**t)) for t in range(self.steps + 1, self.steps + steps + 1)]
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        lr: float,
        decays: bool,
        rates: Tensor | None = None,
        turn: Tensor | None = None,
    ) -> None:
        """Parameters in place, by their gradients and lists of their state, in the step after those made.

        Args:
            params, grads, states: lists of tensors of one dtype on one device.
            lr: learning rate.
            decays: whether these parameters do.
            rates, turn: as :func:`scratchcuda.ops.adam_update_` takes them.
        """
        decay = self.weight_decay if decays else 0.0
        if self.name == "sgd":
            ops.sgd_update_(
                params,
                grads,
                lr,
                decay,
                momentum_buffers=states[0] if states else (),
                momentum=self.momentum,
                dampening=self.dampening,
                nesterov=self.nesterov,
                is_first_step=self.steps == 0 and self.dampening != 0,  # of buffers of zeros it says nothing else
                rates=rates,
                turn=turn,
            )
            return
        ops.adam_update_(
            params,
            grads,
            states[0],
            states[1],
            lr,
            max_exp_avg_sqs=states[2] if self.amsgrad else (),
            betas=self.betas,
            eps=self.eps,
            weight_decay=decay,
            decoupled_weight_decay=self.name == "adamw",
            amsgrad=self.amsgrad,
            step=self.steps + 1,
            rates=rates,
            turn=turn,
        )

    def step(self, slots: Iterable[Slot], gradients: Mapping[str, Tensor], lr: float) -> None:
        """One step of all parameters in these slots, by gradients of their names.

        Of parameters that share memory the gradients add up, and what they share is updated, and decays, once.
        """
        slots = list(slots)
        for slot in slots:
            if slot.name not in gradients:
                raise ValueError(f"gradients has none of {slot.name}, expected one of each parameter that is trained")
            what = f"the gradient of {slot.name}"
            _checks.tensor(what, gradients[slot.name])
            _checks.alike(what, gradients[slot.name], slot.name, slot.tensor)
            _checks.shape(what, gradients[slot.name], tuple(slot.tensor.shape))
        self.begin({slot.name: slot.tensor for slot in slots})
        alone: dict[bool, list[Slot]] = defaultdict(list)
        shared: dict[tuple[bool, int], list[Slot]] = defaultdict(list)
        for slot in slots:
            shared[self.decays(slot.attribute), storage_of(slot.tensor)].append(slot)
        for (decays, _), group in list(shared.items()):
            if len(group) == 1:
                alone[decays] += group
        for decays, group in alone.items():
            names = [slot.name for slot in group]
            grads = [gradients[name] for name in names]
            self.update([slot.tensor for slot in group], grads, self.states(names), lr, decays)
        for (decays, _), group in shared.items():
            if len(group) > 1:
                self._step_shared(group, [gradients[slot.name] for slot in group], lr, decays)
        self.steps += 1

    def _step_shared(self, slots: Sequence[Slot], grads: Sequence[Tensor], lr: float, decays: bool) -> None:
        """Of parameters in one memory: all of a copy of it is updated, and they take their places of that."""
        tensors, states = [slot.tensor for slot in slots], self.states([slot.name for slot in slots])
        memory = whole(tensors[0])
        gradient = torch.zeros_like(memory)
        for tensor, grad in zip(tensors, grads, strict=True):
            like(tensor, gradient).add_(grad)
        values, kept = memory.clone(), [torch.zeros_like(memory) for _ in states]
        for tensors_state, all_of_it in zip(states, kept, strict=True):
            for tensor, state in zip(tensors, tensors_state, strict=True):
                like(tensor, all_of_it).copy_(state)
        self.update([values], [gradient], [[all_of_it] for all_of_it in kept], lr, decays)
        for targets, source in ((tensors, values), *zip(states, kept, strict=True)):
            for tensor, target in zip(tensors, targets, strict=True):
                target.copy_(like(tensor, source))

    def __repr__(self) -> str:
        options = ("weight_decay", *OPTIONS[self.name])
        return (
            f"Optimizer({', '.join([f'name={self.name!r}', *(f'{name}={getattr(self, name)}' for name in options)])})"
        )


#: Of all options, by name.
DEFAULTS: dict[str, Any] = dict(Optimizer.__init__.__kwdefaults__ or {})
_FOREIGN = {name: DEFAULTS.keys() - {"weight_decay", *own} for name, own in OPTIONS.items()}


def optimizer_of(given: object, options: Mapping[str, Any]) -> Optimizer:
    """The optimizer of this name, or the one given; what the options say besides must be what it has already."""
    if not isinstance(given, Optimizer):
        if not isinstance(given, str):
            expected = f"one of {', '.join(map(repr, OPTIONS))}, or the Optimizer of a fit before"
            raise TypeError(f"optimizer is {given!r}, expected {expected}")
        return Optimizer(name=given, **options)
    for name, value in options.items():
        if value not in (DEFAULTS[name], has := getattr(given, name)):
            raise ValueError(f"{name} is {value}, but that of the optimizer given is {has}")
    return given


def update_options(
    optimizer: Optimizer, updates: Iterable[Callable[..., object]], backwards: Iterable[Callable[..., object]] = ()
) -> dict[str, Any]:
    """What a model's update takes of an optimizer.

    Args:
        updates, backwards: methods that somebody has written anew: they must not lose it silently.
    """
    options: dict[str, Any]
    if optimizer.kinds:
        options, of_backward = {"optimizer": optimizer}, "gradients"
    elif optimizer.weight_decay:
        options, of_backward = {"weight_decay": optimizer.weight_decay}, "weight_decay"
    else:
        return {}
    ((name, value),) = options.items()
    for method, argument in (*((update, name) for update in updates), *((b, of_backward) for b in backwards)):
        if argument not in inspect.signature(method).parameters:
            such = "such argument" if argument == name else f"argument {argument}"
            raise TypeError(f"{name} is {value}, but {method.__qualname__} has no {such}")
    return options
