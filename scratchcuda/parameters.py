"""What Model and SimpleLinearRegression share: named parameters that live on one device in one dtype."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from scratchcuda import _checks


class Parameters:
    """Base class. A subclass yields its parameters as (name, owner, attribute) from ``_slots``."""

    #: Whether the parameters may still move to the device of the first data they meet.
    _may_move: bool
    #: An empty tensor of the parameters' device and dtype, for a model that has none.
    _like: Tensor

    def _slots(self) -> Iterator[tuple[str, Any, str]]:
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
            for _, owner, attribute in self._slots():
                setattr(owner, attribute, getattr(owner, attribute).to(device, dtype))
            self._like = self._like.to(device, dtype)
        self._may_move = self._may_move and device is None
        return self

    def state_dict(self) -> "OrderedDict[str, Tensor]":
        """The parameters by name, sharing memory with the model as torch.nn's do."""
        return OrderedDict((name, getattr(owner, attribute).detach()) for name, owner, attribute in self._slots())

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

    def _reference(self) -> Tensor:
        return next((getattr(owner, attribute) for _, owner, attribute in self._slots()), self._like)

    def _data(self, name: str, x: Any, beside: Tensor | None = None) -> Tensor:
        """Data as a tensor of the parameters' dtype on their device, or beside other data.

        A tensor must be there already, as with torch.nn, unless it is the first that the parameters meet: then they
        will move to it. NumPy arrays and lists have no device and carry Python's float64, so they are converted.
        """
        like = self._reference()
        given = x if isinstance(x, Tensor) else _checks.as_tensor(name, x)
        _checks.floating(name, given)
        if not isinstance(x, Tensor):
            return given.to(like if beside is None else beside)
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
