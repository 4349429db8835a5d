"""Checks of options that several commands share; each raises typer.BadParameter."""

import tempfile
from collections.abc import Collection
from pathlib import Path

import torch
import typer

from scratchcuda.compare import Workload, network


def check_device(device: str) -> None:
    """``--device``: one that torch can use."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(str(error).splitlines()[0], param_hint="--device") from None


def check_file(path: Path | None, option: str, endings: Collection[str] = ()) -> None:
    """A file that will be written, if one is asked for; `-` stands for the output.

    Args:
        endings: those that it may have; none are all.
    """
    if path is None or str(path) == "-":
        return
    if endings and path.suffix[1:].lower() not in endings:
        text = f"{path} ends in {path.suffix or 'nothing'}, expected .{' or .'.join(endings)}"
        raise typer.BadParameter(text, param_hint=option)
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise typer.BadParameter(f"{path} is no file in an existing folder", param_hint=option)
    _try_to_write(path if path.exists() else folder, option)


def check_folder(path: Path | None, option: str) -> None:
    """A folder that files will be written into, if one is asked for; it is made if it is not there."""
    if path is None:
        return
    nearest = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise typer.BadParameter(f"{nearest} is a file, expected a folder", param_hint=option)
    _try_to_write(nearest, option)


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


def network_of(sizes: str, activation: str, batch_size: int, *, batches: int = 4, epochs: int = 1) -> Workload:
    """``--sizes`` as 1024,4096,10, with ``--activation`` and ``--batch``: the network of :func:`compare.network`."""
    try:
        return network([int(size) for size in sizes.split(",")], activation, batch_size, batches, epochs)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sizes") from None
