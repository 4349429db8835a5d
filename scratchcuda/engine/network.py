"""What plans see: a network as products with activations between them, and what it is trained on."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import Tensor

from scratchcuda._ranges import name_of
from scratchcuda.engine._patching import original
from scratchcuda.engine.activations import Activation, Layer, chosen
from scratchcuda.engine.layers import Dense, Dropout, Flatten
from scratchcuda.engine.losses import Losses
from scratchcuda.engine.objective import Objective
from scratchcuda.engine.optimizers import Optimizer
from scratchcuda.engine.parameters import storage_of
from scratchcuda.ops import _checks
from scratchcuda.ops._entries import ENTRIES, Chosen


@dataclass
class Product:
    """A layer's weights (n_in, n_out) and bias (n_out,) or None, views of its parameters, and which are trained.

    ``prefix`` and "w" or "b" is the name of a parameter in the state_dict.
    """

    w: Tensor
    b: Tensor | None
    trained: tuple[str, ...] = ("w", "b")
    prefix: str = ""

    @property
    def named(self) -> dict[str, Tensor]:
        """Those parameters that there are."""
        return {"w": self.w} if self.b is None else {"w": self.w, "b": self.b}


@dataclass(frozen=True)
class Noise:
    """A Dropout of this probability. It is in training steps alone."""

    p: float


#: A network in elementary stages.
Stage = Product | Chosen | Noise


@dataclass
class Network:
    """What a plan trains.

    Attributes:
        stages: products, activations and noise, without identities.
        loss: what is minimised; a last activation that belongs to it is no stage.
        owners: each layer with the indices of the values before and after it; value i is the input of stage i.
        sizes: how many features the inputs have, and the predictions.
    """

    stages: list[Stage]
    loss: Objective
    owners: list[tuple[Layer, int, int]]
    sizes: tuple[int, int]

    @cached_property
    def products(self) -> list[Product]:
        return [stage for stage in self.stages if isinstance(stage, Product)]

    @property
    def first_trained(self) -> int:
        """The first stage with trained parameters, below which no gradient is needed; one past the last if none has."""
        trained = (i for i, stage in enumerate(self.stages) if isinstance(stage, Product) and stage.trained)
        return next(trained, len(self.stages))

    @cached_property
    def parameters(self) -> list[Tensor]:
        return [tensor for product in self.products for tensor in product.named.values()]

    @cached_property
    def shown(self) -> set[int]:
        """The indices of the values that layers show."""
        return {index for _, before, after in self.owners for index in (before, after)}

    @cached_property
    def names(self) -> list[str]:
        """Of each parameter, in the state_dict."""
        return [product.prefix + name for product in self.products for name in product.named]

    @property
    def are_trained(self) -> list[bool]:
        """Of each parameter whether it is not frozen."""
        return [name in product.trained for product in self.products for name in product.named]

    @cached_property
    def layer_names(self) -> list[str]:
        """Of the layer that each stage belongs to; empty if layers have none."""
        names = [""] * len(self.stages)
        for i, (layer, before, after) in enumerate(self.owners):
            for stage in range(before, min(after, len(names))):  # a last activation may be no stage
                names[stage] = name_of(i, layer)
        return names

    def unfit(self) -> str:
        """The reason why no plan can train these parameters; empty if one can."""
        tensors = self.parameters
        if not tensors:
            return "no Dense layer to train"
        if len({(t.device, t.dtype) for t in tensors}) > 1:
            return "parameters are not all of one dtype on one device"
        expanded = any(0 in t.stride() and t.numel() > 1 for t in tensors)
        if expanded or len({storage_of(t) for t in tensors}) < len(tensors):
            return "parameters share memory"
        if any(t.is_inference() for t in tensors):
            return "parameters were made in inference mode"
        matrices = all(p.w.dim() == 2 and (p.b is None or p.b.shape == p.w.shape[1:]) for p in self.products)
        n_in, n_out = self.sizes
        widths = [(n_in, n_in), *(tuple(p.w.shape) for p in self.products), (n_out, n_out)] if matrices else []
        if not matrices or any(left[1] != right[0] for left, right in pairwise(widths)):
            return "parameters of sizes that do not follow on one another"
        return ""


@dataclass
class Task:
    """What a network is trained on, and how.

    Attributes:
        x: (samples, features).
        y: targets (samples, n_out), or class indices (samples,).
        batch_size: as in Model.fit.
        lr: the learning rate of the epoch at hand.
        optimizer: what updates the parameters, and their state.
        valid: the same pair of tensors for validation, or None.
        sample_weights: (samples,), for a loss that takes them, or None.
        varies: whether lr changes within the fit.
        drop_last: whether a last batch of fewer samples is left out.
        accuracy: whether hits are counted.
    """

    x: Tensor
    y: Tensor
    batch_size: int
    lr: float
    optimizer: Optimizer
    valid: tuple[Tensor, Tensor] | None
    sample_weights: Tensor | None = None
    varies: bool = False
    drop_last: bool = False
    accuracy: bool = False

    @property
    def samples(self) -> int:
        """That an epoch trains on."""
        samples = self.y.shape[0]
        return samples - samples % self.batch_size if self.drop_last else samples


def network_of(layers: list[Layer], loss_f: Losses, sizes: tuple[int, int], like: Tensor) -> Network | str:
    """The network that a plan can train in place of these layers, on data like this, or why there is none."""
    if like.dim() != 2:
        return f"samples of shape {tuple(like.shape[1:])} train layer by layer"
    stages: list[Stage] = []
    owners: list[tuple[Layer, int, int]] = []
    for i, layer in enumerate(layers):
        before = len(stages)
        activation: Layer = layer
        if isinstance(layer, Dense):
            if original(layer) is not Dense:
                return f"layers[{i}] {layer!r} has methods of its own"
            stages.append(Product(layer.w, layer.b, layer.trained, f"layers.{i}."))
            activation = layer.act_f
        if not isinstance(activation, Activation | Dropout | Flatten) or original(activation) is None:
            return f"layers[{i}] {layer!r} has methods of its own"
        if isinstance(activation, Dropout):
            stages.append(Noise(_checks.between(f"layers[{i}].p", activation.p, 0, 1)))
        elif isinstance(activation, Activation):
            if activation.op not in ENTRIES:
                return f"layers[{i}] {layer!r} has no call in the plan"
            if activation.op != "none":
                stages.append(chosen(activation))
        owners.append((layer, before, len(stages)))
    if original(loss_f) is None:
        return f"loss_f {loss_f!r} has methods of its own"
    loss = loss_f.objective(like)
    if loss.activation:
        if stages[-1:] != [Chosen(loss.activation)]:
            return f"loss_f {loss_f!r} of what no last {loss.activation} makes"
        del stages[-1]
    return Network(stages, loss, owners, sizes)
