"""Imports within the package point one way: from wing to wing down, and never round."""

import ast
import importlib
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import scratchcuda

pytestmark = pytest.mark.backends("tensor")
#: From below: what each wing holds, by the first name within the package.
WINGS = (
    "_build _fallback _json _ranges",
    "_C ops",
    "nn",
    "engine",
    "optim",
    "metrics scratchcuda",  # the package's __init__, which has the version
    "sklearn",
    "compare conditions doctor options tables",
    "profiler",
    "bench",
    "cli __main__",
)
WING = {name: i for i, names in enumerate(WINGS) for name in names.split()}


def wing(module):
    return WING[module.removeprefix("scratchcuda.").split(".")[0]]


def imports(path, package, modules):
    """What a file imports of these modules, within functions too, but not what it imports for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from modules & {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield from modules & {f"{source}.{alias.name}"} or modules & {source}


def test_no_import_runs_up_or_round():
    root = Path(scratchcuda.__file__).parent
    files = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    names = {file: file.removesuffix(".__init__") for file in files}
    modules = {*names.values(), "scratchcuda._C"}  # the last is built
    found = {names[file]: {*imports(path, file.rpartition(".")[0], modules)} for file, path in files.items()}
    assert "scratchcuda.profiler.report" in found["scratchcuda.profiler.profile"]  # within a method
    assert [f"{a} imports {b}" for a in found for b in found[a] if wing(b) > wing(a)] == []
    TopologicalSorter(found).prepare()  # or it names the circle


@pytest.mark.parametrize("name", ["activations", "exchange", "layers", "losses", "model", "network", "training"])
def test_the_engines_files_are_found_where_they_were(name):
    assert importlib.import_module(f"scratchcuda.{name}") is importlib.import_module(f"scratchcuda.engine.{name}")
