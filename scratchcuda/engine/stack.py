"""The layers of a Model: checked, and told as a table."""

from collections.abc import Collection, Sequence

from scratchcuda.engine.activations import Layer
from scratchcuda.engine.layers import InputLayer
from scratchcuda.engine.parameters import Slot, place_of


def check(layers: Sequence[Layer]) -> None:
    """An InputLayer, then layers, each object once."""
    if not isinstance(layers, Sequence) or not layers or not isinstance(layers[0], InputLayer):
        raise ValueError(f"layers is {layers!r}, expected a list that starts with an InputLayer")
    if len(layers) == 1:
        raise ValueError("layers holds only an InputLayer, expected at least one layer after it")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer) or (i > 0 and isinstance(layer, InputLayer)):
            raise TypeError(f"layers[{i}] is {layer!r}, expected a Dense, an activation or a Layer of your own")
        if any(layer is earlier for earlier in layers[:i]):
            raise ValueError(f"layers[{i}] is {layer!r}, which stands in the list already; expected a new object")


def table(layers: Sequence[Layer], shapes: Sequence[Sequence[int]], slots: Collection[Slot]) -> str:
    """A line for each layer, and totals, in which what is tied counts once.

    Args:
        layers: the InputLayer among them.
        shapes: of their outputs for a sample.
        slots: of the parameters.
    """
    rows = [["Layer", "Output shape", "Parameters", "Frozen"]]
    for layer, shape in zip(layers, shapes, strict=True):
        of_layer = [slot for slot in slots if slot.owner is layer]
        rows.append([repr(layer), f"({', '.join(['m', *map(str, shape)])})", *_counts(of_layer)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *lines = ["  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])]) for row in rows]
    total, frozen = _counts(slots)
    return "\n".join([head, rule := "-" * len(head), *lines, rule, f"{total} parameters, {frozen} of them frozen"])


def _counts(slots: Collection[Slot]) -> tuple[str, str]:
    """How many numbers these parameters are, and how many of them training leaves as they are."""
    counts = {place_of(slot.tensor): slot.tensor.numel() for slot in slots}
    trained = {place_of(slot.tensor) for slot in slots if slot.attribute in slot.owner.trained}
    frozen = sum(count for place, count in counts.items() if place not in trained)
    return f"{sum(counts.values()):,}", f"{frozen:,}"
