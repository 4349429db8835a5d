"""Profiles a training step: where its time goes, and compared with what."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scratchcuda import conditions, optim
from scratchcuda.engine.linear_regression import SimpleLinearRegression
from scratchcuda.engine.model import Model
from scratchcuda.nn import convert, revert
from scratchcuda.ops import _backend, _checks
from scratchcuda.profiler import ceilings, costs, kernels, race
from scratchcuda.profiler.clocks import Clock, clock_of
from scratchcuda.profiler.comparison import Comparison
from scratchcuda.profiler.findings import Ceilings, Findings, Kernel
from scratchcuda.profiler.measure import measure
from scratchcuda.profiler.owned import owned
from scratchcuda.profiler.record import Ranges, Recorder
from scratchcuda.profiler.subjects import FitSubject, ModuleSubject, Optimizer, Subject, peers_of, torch_subjects

#: The name of what is profiled among its peers.
THIS = "this"


class Profile(Findings):
    """What :func:`profile` found, to be compared, shown and saved."""

    def compare(self, other: "Profile") -> Comparison:
        """This one and another side by side, as of before and after a change; ``show`` prints the result."""
        if not isinstance(other, Profile):
            raise TypeError(f"other is {type(other).__name__}, expected a Profile")
        return Comparison(self, other)

    def show(self, top: int = 15, sort: str = "time") -> None:
        """Print its tables; needs what pip install 'scratchcuda[cli]' brings, as save does.

        Args:
            top: of layers and ops so many, the most expensive ones; what save writes has all.
            sort: by what: "time" (warm), "cold", "flop", "bytes" or "calls", of a step.
        """
        from scratchcuda.profiler import report

        report.show(self, top, sort)

    def save(self, folder: str | Path) -> list[Path]:
        """Write report.html, which holds all else: profile.json, trace.json, roofline.png, step.png."""
        from scratchcuda.profiler import report

        return report.save(self, Path(folder))


def profile(
    model: Model | SimpleLinearRegression | nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    optimizer: Optimizer | None = None,
    lr: float = 0.01,
    compile: bool = True,
    title: str = "",
    samples: int = 15,
    clock: Clock | None = None,
    limits: Ceilings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:
    """Profile a training step of one batch. Model and data stay as they are.

    Args:
        model: one of our models, or any torch.nn.Module.
        inputs: of a batch: of our models x, as fit takes it; of a module its argument, a tuple of arguments, or a dict
            of keyword arguments, such as a tokenizer's output. A single argument that is a tuple or a dict: ``(it,)``.
        targets: of a batch; fit's y, or what the loss takes.
        kwargs: keyword arguments of a module, besides inputs that are its argument or a tuple.
        loss: of a module's outputs and the targets -> (); the mean square of the outputs' first floating-point tensor
            if None.
        optimizer: a module's own, of which a copy serves whose state begins anew; or what makes one from parameters,
            such as ``torch.optim.Adam`` or ``partial(torch.optim.Adam, lr=0.1)``. SGD if None, scratchcuda's if the
            module has layers of ours. Its step must need no closure.
        lr: learning rate of fit, or of SGD.
        compile: whether to compare with torch.compile, which takes seconds for each distinct op of ours; what it has
            compiled in this process before is dropped.
        title: of the report.
        samples: measurements of each time.
        clock, limits: of the device; made or measured if None.
        progress: told how many of the ops are measured.

    Memory: a copy of the model for each whose steps are timed, and copies of what its ops are called with: with SGD
    some 10 times the parameters in all, with Adam 20 (docs/profiler.md).

    Raises:
        TypeError, ValueError: for arguments that do not fit, before anything is measured; and as fit or the module
            raise them.
    """
    _checks.positive_int("samples", samples)
    device = _device(model, (inputs, kwargs))
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"model is on {device}, expected on a CPU or a CUDA device")
    with _aside(device):
        subject, others, notices = _subjects(model, inputs, kwargs, targets, loss, optimizer, lr, compile)
        notices += kernels.notices(subject.device)
        if _backend.current == "emulator":
            notices.append("The emulator has run the kernels: times of theirs tell nothing of a GPU")
        with Recorder(Ranges(), subject.device) as recorder:
            subject.show(recorder.ranges)
        clock = clock or clock_of(subject.device, samples)
        limits = limits or ceilings.of(clock)
        if recorder.left_out:
            names = ", ".join(sorted(recorder.left_out))
            reason = "their tensors are elsewhere, sparse, nested or of other classes, or their work cannot be told"
            notices.append(f"Left out, because {reason}: {names}")
        calls = {kind: call for kind, call in recorder.calls.items() if call.cost.bytes}
        uncounted = sorted({call.name for call in calls.values() if not call.cost.counted})
        if uncounted:
            notices.append(f"FLOPs are not counted of, and shown as 0: {', '.join(uncounted)}")
        is_profiled = torch.autograd._profiler_enabled()
        if is_profiled:
            notices.append("torch.profiler is at work outside of this: there is no trace, and no kernels are seen")
        launched: list[list[Kernel]] = [[] for _ in calls]
        with torch.no_grad():
            if not (is_profiled and subject.device.type == "cuda"):
                launched = kernels.launched(list(calls.values()), subject.device)
        if subject.device.type == "cuda" and not is_profiled and not any(launched):
            notices.append(
                "CUPTI has delivered no kernels: another profiler has it, or the driver refuses it "
                "(with KINETO_LOG_LEVEL=4 it writes why)"
            )
        measured = {}
        for i, ((kind, call), found) in enumerate(zip(calls.items(), launched, strict=True)):
            progress(i, len(calls))
            try:
                measured[kind] = measure(call, found, clock, limits, compile)
            except RuntimeError as error:  # such as what cannot be captured in a CUDA graph
                notices.append(f"{call.name} is left out: {str(error).splitlines()[0]}")
        rows = [
            replace(measured[kind], phase=phase, layer=layer, calls=count)
            for (phase, layer, kind), count in recorder.places.items()
            if kind in measured
        ]
        if not rows:
            raise ValueError(f"model is {model!r}, expected one that does something that can be measured")
        dtype = rows[0].dtype
        steps, failed = race.race(others if THIS in others else others | {THIS: subject}, dtype, samples, least=0.02)
        notices += [f"There is no ratio to {name}: {reason}" for name, reason in failed.items()]
        return Profile(
            title or type(model).__name__,
            dtype,
            subject.path,
            conditions.conditions(subject.device),
            limits,
            rows,
            steps,
            {} if is_profiled else kernels.trace(partial(subject.show, Ranges()), subject.device),
            notices,
        )


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On this device; random numbers are drawn as if nothing had been drawn here."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []), torch.cuda.device(device) if on_gpu else nullcontext():
        yield


def _device(model: Any, inputs: Any) -> torch.device:
    tensors = list(model.parameters()) if isinstance(model, nn.Module) else []
    return next(costs.tensors_of((inputs, tensors)), torch.empty(0)).device


def _subjects(
    model: Any,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    targets: Any,
    loss: Any,
    optimizer: Optimizer | None,
    lr: float,
    compile: bool,
) -> tuple[Subject, dict[str, Subject], list[str]]:
    """What is profiled, its peers, and why there are none."""
    if isinstance(model, Model | SimpleLinearRegression):
        for name, value in {"loss": loss, "optimizer": optimizer, "kwargs": kwargs}.items():
            if value is not None:
                raise TypeError(f"{name} is given, expected none: fit has the model's own")
        if targets is None:
            raise TypeError("targets is None, expected those of the batch, as fit takes them")
        if isinstance(inputs, Mapping):
            raise TypeError(f"inputs is {type(inputs).__name__}, expected x of the batch, as fit takes it")
        x, y = (data if isinstance(data, Tensor) else _as_tensor(data, model) for data in (inputs, targets))
        _checks.not_empty("inputs", x)
        subject = FitSubject(model, x, y, lr)
        try:
            return subject, peers_of(model, x, y, lr, compile), []
        except TypeError as error:
            return subject, {}, [f"There is no ratio to torch: {error}"]
    _check(model, inputs, kwargs, targets, loss, optimizer)
    notices = []
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in model.modules()):
        notices.append("The model is compiled, wholly or in part: its ops and steps are shown as they are without that")
    net = owned(model, "model")
    is_ours, has_ours = bool(revert(net).swapped), bool(convert(net).swapped)
    del net
    theirs = optimizer or partial(torch.optim.SGD, lr=lr)
    ours = partial(ModuleSubject, model, inputs, targets, loss, optimizer or partial(optim.SGD, lr=lr), kwargs)
    if is_ours:
        others = torch_subjects(model, inputs, targets, loss, theirs, compile, kwargs, change=revert)
        return ours(), others, notices
    others = torch_subjects(model, inputs, targets, loss, theirs, compile, kwargs)
    this = others.pop("torch eager")
    if has_ours:
        others["converted"] = ours(change=partial(convert, fuse=True))
    return this, {THIS: this} | others, notices


def _check(model: Any, inputs: Any, kwargs: Any, targets: Any, loss: Any, optimizer: Any) -> None:
    """What is given for a module, as far as that can be told before a step."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected one of scratchcuda's or a torch.nn.Module")
    for name, module in model.named_modules(prefix="model"):
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"{name} is {type(module).__name__}, expected the torch.nn.Module that it was made of")
    for name, parameter in model.named_parameters(prefix="model"):
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"{name} waits for a first input, expected parameters: call the model once")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs is {type(kwargs).__name__}, expected a dict of keyword arguments")
    if kwargs is not None and isinstance(inputs, Mapping):
        raise TypeError(
            f"kwargs is given besides inputs of keyword arguments ({type(inputs).__name__}), expected one of the two"
        )
    given = {"inputs": inputs, "kwargs": kwargs}
    tensors = [(name, tensor) for name, data in given.items() for tensor in costs.tensors_of(data)]
    if tensors and not any(tensor.numel() for _, tensor in tensors):  # an empty one among others may be wanted
        _checks.not_empty(*tensors[0])
    if isinstance(targets, nn.Module):
        raise TypeError(f"targets is {targets!r}, expected data; a loss is given as loss=")
    if loss is not None and (isinstance(loss, type) or not callable(loss)):
        raise TypeError(f"loss is {loss!r}, expected a function of outputs and targets, as torch.nn.MSELoss()")
    if not (optimizer is None or isinstance(optimizer, torch.optim.Optimizer) or callable(optimizer)):
        raise TypeError(
            f"optimizer is {type(optimizer).__name__}, expected one of the model's, or a class, as torch.optim.Adam"
        )


def _as_tensor(data: Any, model: Model | SimpleLinearRegression) -> Tensor:
    """As fit converts what is no tensor."""
    made = torch.as_tensor(data, device=model.device)
    return made.to(model.dtype) if made.is_floating_point() else made
