"""Runs the notebooks of examples from top to bottom, and keeps what they print and draw: make notebooks."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run, which raises if a cell does."""
    options = {"timeout": 120, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)  # without the version of Python that a run would add
    NotebookClient(notebook, **options).execute()
    notebook.metadata = metadata
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(executed(path), path)
