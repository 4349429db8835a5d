"""How layers that share parameters, or have frozen ones and a backward of somebody's own, are updated."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from scratchcuda.engine._patching import original
from scratchcuda.engine.layers import Dense
from scratchcuda.engine.optimizers import Optimizer
from scratchcuda.engine.parameters import Slot, like, overlap, sharing, storage_of, whole


def kept_apart(
    slots: Iterable[Slot], lr: float, weight_decay: float = 0.0, optimizer: Optimizer | None = None
) -> AbstractContextManager[None]:
    """In which a model's layers are updated, of all its parameters: those that need it are copies.

    Raises:
        ValueError, TypeError: if there is no right way to update them.
    """
    slots = list(slots)
    shared = {slot.name for slot in sharing(slots)}
    trained = {slot.name for slot in slots if slot.is_trained}
    patched = {slot.name for slot in slots if original(slot.owner) is not Dense}
    for slot, other in itertools.permutations([slot for slot in slots if slot.name in shared], 2):
        if slot.name in trained and other.name not in trained and overlap(slot.tensor, other.tensor):
            raise ValueError(f"{slot.name} shares memory with {other.name}, which is frozen, expected both or none")
        of_both = optimizer is not None and optimizer.weight_decay and {slot.name, other.name} <= trained
        if of_both and slot.attribute == "w" != other.attribute and overlap(slot.tensor, other.tensor):
            raise ValueError(f"{slot.name}, which decays, shares memory with {other.name}, which does not")
    if weight_decay and (unknown := sorted(shared & trained & patched)):
        raise TypeError(
            f"weight_decay is {weight_decay}, but {unknown[0]} is shared, and its layer has methods of its own"
        )
    # An optimizer updates what is shared once, after all backwards.
    shared = shared if optimizer is None else set()
    chosen = [slot for slot in slots if slot.name in shared or slot.name in patched - trained]
    rates = {"w": lr * weight_decay}
    return _copies(chosen, [rates.get(s.attribute, 0.0) if s.name in trained else None for s in chosen])


@contextmanager
def _copies(slots: Sequence[Slot], rates: Sequence[float | None]) -> Iterator[None]:
    """Within the block owners have copies of their parameters; after it, each parameter has the changes of all copies.

    So every gradient is one of the parameters that the forward has used, whichever layers above have been updated, and
    a frozen parameter stays as it is, whatever a layer's own backward does to it.

    Args:
        slots: of parameters that may share memory.
        rates: by which each copy decays, in proportion to itself; what is shared decays once. None for a frozen one.
    """
    before = [slot.tensor for slot in slots]
    changes: dict[int, Tensor] = {}
    for slot, tensor in zip(slots, before, strict=True):
        setattr(slot.owner, slot.attribute, tensor.detach().clone())
    try:
        yield
        for slot, tensor, rate in zip(slots, before, rates, strict=True):
            if rate is not None:
                change = changes.setdefault(storage_of(tensor), torch.zeros_like(whole(tensor)))
                like(tensor, change).add_(slot.tensor - tensor + rate * tensor)
    finally:
        for slot, tensor in zip(slots, before, strict=True):
            setattr(slot.owner, slot.attribute, tensor)
    trained = [(tensor, rate) for tensor, rate in zip(before, rates, strict=True) if rate is not None]
    values = [tensor + (like(tensor, changes[storage_of(tensor)]) - rate * tensor) for tensor, rate in trained]
    for (tensor, _), value in zip(trained, values, strict=True):  # where they overlap, the same is written again
        tensor.copy_(value)
