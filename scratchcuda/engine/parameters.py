"""What Model and SimpleLinearRegression share: named parameters that live on one device in one dtype."""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from scratchcuda.ops import _checks


class Slot(NamedTuple):
    """Where a parameter is: its name in the state_dict, and the attribute of the object that has it."""

    name: str
    owner: Any
    attribute: str

    @property
    def tensor(self) -> Tensor:
        value: Tensor = getattr(self.owner, self.attribute)
        return value

    @property
    def is_trained(self) -> bool:
        """Whether training changes it: it is not frozen."""
        return self.attribute in self.owner.trained


class Parameters:
    """Base class. A subclass yields its parameters from ``_slots``."""

    #: Whether the parameters may still move to the device of the first data they meet.
    _may_move: bool
    #: An empty tensor of the parameters' device and dtype, for a model that has none.
    _like: Tensor
    #: What the last fit has bound, kept for the next by the tensor plan.
    _plan: object = None

    def _slots(self) -> Iterator[Slot]:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._reference().device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self._reference().dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the parameters, as torch.nn.Module.to: ``to(device)``, ``to(dtype)`` or both. Returns self.

        A device named here is explicit: the parameters stay there, whatever data they meet.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        _checks.float_dtype(dtype)
        with torch.inference_mode(False), torch.no_grad():  # or parameters moved while predicting could not be trained
            slots = list(self._slots())
            shared = {storage_of(slot.tensor): whole(slot.tensor).to(device, dtype) for slot in sharing(slots)}
            for slot in slots:
                memory = shared.get(storage_of(slot.tensor))
                tensor = slot.tensor.to(device, dtype) if memory is None else like(slot.tensor, memory)
                setattr(slot.owner, slot.attribute, tensor)
            self._like = self._like.to(device, dtype)
        self._may_move = self._may_move and device is None
        return self

    def parameters(self) -> Iterator[Tensor]:
        """The tensors themselves, trained and frozen, tied ones once.

        For ``sum(p.numel() for p in model.parameters())``, and for an optimizer of torch's with a scheduler of its own.
        """
        by_place = {place_of(slot.tensor): slot.tensor for slot in self._slots()}
        yield from by_place.values()

    def state_dict(self) -> "OrderedDict[str, Tensor]":
        """The parameters by name, sharing memory with the model as torch.nn's do."""
        return OrderedDict((slot.name, slot.tensor.detach()) for slot in self._slots())

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the parameters of another model's state_dict; names and shapes must be those of this model's."""
        own = self.state_dict()
        missing, unexpected = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
        if missing or unexpected:
            raise ValueError(f"state_dict lacks {missing} and has unexpected {unexpected}, expected {list(own)}")
        for name, tensor in own.items():
            _checks.tensor(f"state_dict[{name!r}]", state_dict[name])
            _checks.shape(f"state_dict[{name!r}]", state_dict[name], tuple(tensor.shape))
        with self._unchanged_on_error():
            for name, tensor in own.items():
                tensor.copy_(state_dict[name])

    def __getstate__(self) -> dict[str, Any]:
        """With what parameters share beside them: pickled one by one, they would each have their own."""
        shared = sharing(self._slots())
        memory = {storage_of(slot.tensor): whole(slot.tensor) for slot in shared}
        return vars(self) | {"_shared": [(slot, memory[storage_of(slot.tensor)]) for slot in shared], "_plan": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for slot, memory in state.pop("_shared"):
            setattr(slot.owner, slot.attribute, like(slot.tensor, memory))
        vars(self).update(state)

    def _reference(self) -> Tensor:
        return next((slot.tensor for slot in self._slots()), self._like)

    def _data(self, name: str, x: Any, beside: Tensor | None = None) -> Tensor:
        """Data as a tensor of the parameters' dtype on their device, or beside other data.

        A tensor must be there already, as with torch.nn, unless it is the first that the parameters meet: then they
        will move to it. NumPy arrays and lists have no device and carry Python's float64, so they are converted, and
        so are integers and bools of any kind.
        """
        like = self._reference()
        given = x if isinstance(x, Tensor) else _checks.as_tensor(name, x)
        _checks.real(name, given)
        if not isinstance(x, Tensor):
            return given.to(like if beside is None else beside)
        if not given.is_floating_point():
            given = given.to(like.dtype)
        if given.dtype != like.dtype:
            raise TypeError(f"{name} has dtype {given.dtype}, expected {like.dtype} as the parameters")
        if beside is not None:
            _checks.on_device(name, given, "the data before it", beside.device)
        elif not self._may_move:
            _checks.on_device(name, given, "the parameters", like.device)
        return given

    def _settle(self, x: Any) -> None:
        """Move to the first tensor given as data, once all of the data has passed its checks."""
        if self._may_move and isinstance(x, Tensor):
            self.to(x.device)

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        before = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        with torch.no_grad():
            try:
                yield
            except BaseException:
                for name, tensor in self.state_dict().items():
                    tensor.copy_(before[name])
                raise


def sharing(slots: Iterable[Slot]) -> list[Slot]:
    """Those whose parameters lie in memory that another's lie in too: tied, or cut from one piece."""
    slots = list(slots)
    counts = Counter(storage_of(slot.tensor) for slot in slots)
    return [slot for slot in slots if counts[storage_of(slot.tensor)] > 1]


def storage_of(tensor: Tensor) -> int:
    """What tells the memory that a tensor lies in from all other; on the meta device too, where no address does."""
    number: int = tensor.untyped_storage()._cdata
    return number


def place_of(tensor: Tensor) -> Hashable:
    """Which elements of which memory, in which order."""
    return storage_of(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()


def whole(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor lies in, as (elements,) of its dtype."""
    elements = tensor.untyped_storage().nbytes() // tensor.itemsize
    return tensor.detach().as_strided((elements,), (1,), 0)


def like(tensor: Tensor, memory: Tensor) -> Tensor:
    """The place of a tensor in its memory, in other memory (elements,)."""
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def overlap(tensor: Tensor, other: Tensor) -> bool:
    """Whether they have an element in common."""
    if storage_of(tensor) != storage_of(other):
        return False
    marks = torch.zeros_like(whole(tensor), dtype=torch.bool, device="cpu")
    like(tensor, marks).fill_(True)
    return bool(like(other, marks).any())
