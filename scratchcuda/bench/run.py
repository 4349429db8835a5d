"""Measures rows one after another, and saves what there is after each."""

import re
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scratchcuda import _json
from scratchcuda._build.library import BuildError
from scratchcuda.bench.rows import Row, reached


def run(
    result: dict[str, Any],
    todo: Sequence[Row],
    *,
    seconds: float,
    file: Path | None,
    show: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure rows.

    Args:
        result: the conditions; gets "rows", "left out" and "bars".
        todo: the rows. What one raises costs that row alone: it gets an "error"; but a BuildError ends all.
        seconds: no row begins after these.
        file: gets the result after each row; None is no file.
        show: told each row.
    """
    begun = time.perf_counter()
    result["rows"] = []
    for row in todo:
        if time.perf_counter() - begun > seconds:
            break
        found: dict[str, Any] = {"part": row.part, "label": row.label}
        try:
            found |= row.measure()
        except BuildError:  # which would end each row
            raise
        except Exception as error:
            found |= {"error": f"{type(error).__name__}: {error}".splitlines()[0], "traceback": traceback.format_exc()}
        result["rows"].append(found)
        show(found)
        _finish(result, todo, file, begun)  # in case that the next row ends it all
    _finish(result, todo, file, begun)
    return result


def _finish(result: dict[str, Any], todo: Sequence[Row], file: Path | None, begun: float) -> None:
    result["seconds"] = time.perf_counter() - begun
    done = {row["label"]: row for row in result["rows"]}
    result["left out"] = [row.label for row in todo if row.label not in done]
    result["bars"] = reached(todo, done, result["dry"])
    if file is not None:
        file.write_text(dumps(result))


def dumps(result: dict[str, Any]) -> str:
    """As JSON: numbers with five digits, more than a clock can tell, and a list of them in one line."""
    text = _json.dumps(result, parse_float=lambda text: float(f"{float(text):.5g}"))
    return re.sub(r"\[[-+\d.eE,\s]*\]", lambda found: " ".join(found[0].split()), text) + "\n"
