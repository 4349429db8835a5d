"""What a fit did, epoch by epoch."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class History:
    """What a fit did. Epochs and steps count from 0.

    Attributes:
        loss: mean of the batches' training losses, by epoch.
        lr: learning rate, by epoch.
        valid_loss: loss on the validation data after each epoch; empty without such data.
        step_loss: training loss of every step (batch), before its update.
        accuracy: of the training, by epoch: of each batch's predictions before its update the share that is right, from
            0 to 1; empty unless asked for.
        valid_accuracy: the same of the validation data after each epoch.
        path: the way that served the fit, "tensor plan", "graph plan" or "general".
        reason: why the general path served; empty for a plan.
        graph_bytes: device memory that a graph plan takes and keeps, besides parameters and data; 0 for other paths.
        stopped: why the fit ended early; empty if it did not.
        best_epoch: the epoch whose parameters early stopping has restored; None if it has restored none.
    """

    path: str
    reason: str = ""
    graph_bytes: int = 0
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    valid_loss: list[float] = field(default_factory=list)
    step_loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    valid_accuracy: list[float] = field(default_factory=list)
    stopped: str = ""
    best_epoch: int | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of before lack what has come since."""
        vars(self).update(vars(History("")) | state)

    def stop(self, reason: str) -> None:
        """End the fit after this epoch. Of several reasons the first stays, as ``stopped``."""
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"reason is {reason!r}, expected a text that says why the fit ends")
        self.stopped = self.stopped or reason

    def to_dict(self) -> dict[str, list[float]]:
        """The series by epoch that are not empty, all of one length: ``pandas.DataFrame(history.to_dict())``."""
        series = {of.name: getattr(self, of.name) for of in fields(self) if of.name != "step_loss"}
        series = {name: values for name, values in series.items() if isinstance(values, list) and values}
        epochs = min(map(len, series.values()), default=0)  # Ctrl-C may have ended a fit between two of them
        return {name: values[:epochs] for name, values in series.items()}

    def plot(self) -> "Axes":
        """Draw the losses by epoch with matplotlib, and beside them the accuracies if there are any.

        Returns:
            the Axes of the losses, of a figure of their own: ``history.plot().figure.savefig("fit.png")``. That of the
            accuracies is the next of ``figure.axes``.

        Raises:
            ImportError: without matplotlib, and says what to type.
        """
        try:
            from matplotlib import pyplot
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'scratchcuda[cli]'") from error
        panels = ["loss", "accuracy"] if self.accuracy else ["loss"]
        _, grid = pyplot.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False, layout="tight")
        for axes, name in zip(grid[0], panels, strict=True):
            for series, label, style in ((name, "training", "-"), (f"valid_{name}", "validation", "--")):
                if values := getattr(self, series):
                    axes.plot(values, style, label=label, marker="o" if len(values) == 1 else None)
            if self.best_epoch is not None:
                axes.axvline(self.best_epoch, color="gray", linestyle=":", label=f"restored: epoch {self.best_epoch}")
            axes.set(xlabel="epoch", ylabel=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
        first: Axes = grid[0, 0]
        return first
