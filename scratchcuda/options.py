"""Options that several commands share, and their checks, which raise typer.BadParameter."""

import math
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from scratchcuda.compare import ACTIVATIONS, LARGE, WORKLOADS, Workload, network, workloads


def number(least: float, most: float = math.inf) -> Callable[[Any], Any]:
    """A callback for an option: what is not given, or finite and among these, passes."""
    kind = "an integer" if isinstance(least, int) else "a finite number"
    expected = f"{kind} of at least {least:g}" if most == math.inf else f"{kind} from {least} to {most}"

    def check(value: Any) -> Any:
        if value is not None and not (least <= value <= most and value < math.inf):
            raise typer.BadParameter(f"{value}, expected {expected}")
        return value

    return check


def _path(text: str) -> Path:
    if not text:  # which a Path takes for the current folder
        raise typer.BadParameter("'', expected a name")
    return Path(text)


#: Stands for the output where a file is asked for.
OUTPUT = Path("-")

#: Options, by the panel of the help that they stand in.
trained = partial(typer.Option, rich_help_panel="What is trained")
measured = partial(typer.Option, rich_help_panel="How it is measured")
written = partial(typer.Option, parser=_path, rich_help_panel="What is written")

#: Of all workloads.
NAMES = (*WORKLOADS, *LARGE)

Named = Annotated[
    str | None,
    typer.Argument(metavar="WORKLOAD", help=f"Of {', '.join(NAMES)}; mlp, if --sizes is not given."),
]
Sizes = Annotated[
    str | None,
    trained(metavar="N,N,...", help="A perceptron of its own, as 64,128,10: input, layers, output."),
]
Activated = Annotated[
    str | None,
    trained(metavar="NAME", help=f"Of --sizes: {', '.join(ACTIVATIONS)}; relu, if not given."),
]
Batch = Annotated[
    int | None,
    trained(callback=number(1), metavar="N", help="Samples of a step; the workload's own, or 64, if not given."),
]
Device = Annotated[str, measured(metavar="DEVICE", help="cpu or cuda; cuda:1 is the second card.")]
Threads = Annotated[int, measured(callback=number(1, 1024), metavar="N", help="CPU threads of torch.")]
Json = Annotated[
    Path | None,
    written("--json", metavar="FILE", help="Write everything into this JSON file; - is the output."),
]


def check_name(name: str, known: Collection[str], option: str) -> str:
    if name not in known:
        raise typer.BadParameter(f"there is no {name!r}, expected one of {', '.join(known)}", param_hint=option)
    return name


def check_names(texts: Iterable[str] | None, known: Collection[str], option: str) -> list[str]:
    """Of an option that may be repeated, or hold several names with commas: each once."""
    names = (name.strip() for text in texts or () for name in text.split(","))
    return list(dict.fromkeys(check_name(name, known, option) for name in names))


def check_device(device: str) -> torch.device:
    """``--device``: a CPU, or a card that torch can use."""
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise typer.BadParameter(f"there is no {device!r}, expected cpu or cuda", param_hint="--device")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        text = f"{device} cannot be used ({str(error).splitlines()[0]}): scratchcuda doctor tells what is here"
        raise typer.BadParameter(text, param_hint="--device") from None
    return torch.device(device)


def check_file(path: Path | None, option: str, endings: Collection[str] = ()) -> None:
    """A file that will be written, if one is asked for.

    Args:
        endings: those that it may have; none are all, and `-`, the output.
    """
    if path is None or (path == OUTPUT and not endings):
        return
    if endings and path.suffix[1:].lower() not in endings:
        text = f"{path} ends in {path.suffix or 'nothing'}, expected .{' or .'.join(endings)}"
        raise typer.BadParameter(text, param_hint=option)
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise typer.BadParameter(f"{path} is no file in an existing folder", param_hint=option)
    _try_to_write(path if path.exists() else folder, option)


def check_folder(path: Path | None, option: str, names: Collection[str] = ()) -> None:
    """A folder that files of these names will be written into, if one is asked for; it is made if it is not there."""
    if path is None:
        return
    nearest = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise typer.BadParameter(f"{nearest} is a file, expected a folder", param_hint=option)
    _try_to_write(nearest, option)
    for name in names:
        if (path / name).exists():
            check_file(path / name, option)


def _try_to_write(path: Path, option: str) -> None:
    """Into the folder, or at the end of the file: permissions alone do not tell."""
    try:
        if path.is_dir():
            tempfile.TemporaryFile(dir=path).close()
        else:
            path.open("ab").close()
    except OSError as error:
        text = f"{path} is not writable ({error.strerror}), expected a place that is"
        raise typer.BadParameter(text, param_hint=option) from None


def write(text: str, path: Path) -> None:
    """Into a file that :func:`check_file` has let through."""
    if path == OUTPUT:
        typer.echo(text)
    else:
        path.write_text(text + "\n")


def workload_of(
    name: str | None,
    sizes: str | None,
    activation: str | None,
    batch: int | None,
    device: torch.device,
    *,
    batches: int = 4,
    epochs: int = 4,
) -> Workload:
    """What WORKLOAD, ``--sizes``, ``--activation`` and ``--batch`` ask for.

    Args:
        batches, epochs: of the network of ``--sizes``, on its synthetic data.
    """
    if sizes is None:
        if activation is not None:
            raise typer.BadParameter("it belongs to --sizes, which is not given", param_hint="--activation")
        work = workloads(device)[check_name("mlp" if name is None else name, NAMES, "WORKLOAD")]
        return replace(work, batch_size=batch or work.batch_size)
    if name is not None:
        raise typer.BadParameter(f"{sizes} beside {name}, expected one of them", param_hint="--sizes")
    check_name(activation or "relu", ACTIVATIONS, "--activation")
    try:
        return network([int(size) for size in sizes.split(",")], activation or "relu", batch or 64, batches, epochs)
    except ValueError:
        text = f"{sizes!r}, expected two or more positive integers with commas, as 64,128,10"
        raise typer.BadParameter(text, param_hint="--sizes") from None
