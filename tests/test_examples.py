"""The example notebooks run from top to bottom, and show what they have given when they were last run."""

import re

import pytest

nbformat, notebooks = pytest.importorskip("nbformat"), pytest.importorskip("notebooks")
pytestmark = pytest.mark.backends("tensor")  # their text speaks of the plan


def outputs(notebook):
    """What each cell shows, without numbers, whose last digits differ from processor to processor, and pictures."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = [
        [(out.output_type, out.get("text", out.get("data", {}).get("text/plain"))) for out in cell.outputs]
        for cell in cells
    ]
    return [
        (cell.execution_count, re.sub(r"[-+]?\d[.\d]*(e[-+]?\d+)?|\s+", " ", str(text)))
        for cell, text in zip(cells, texts, strict=True)
    ]


def test_there_are_three():
    assert len(notebooks.NOTEBOOKS) == 3


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    """Its own assertions are the test; after an edit ``make notebooks`` keeps the new outputs."""
    assert outputs(nbformat.read(path, as_version=4)) == outputs(notebooks.executed(path))
