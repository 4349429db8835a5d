"""Results as JSON, which has no word for what a training that diverges comes to: infinities and NaN become null."""

import json
from collections.abc import Callable
from typing import Any


def dumps(found: Any, parse_float: Callable[[str], float] = float) -> str:
    """As text of many lines; ``parse_float`` may round each number, given as Python writes it."""
    finite = json.loads(json.dumps(found), parse_float=parse_float, parse_constant=lambda name: None)
    return json.dumps(finite, indent=1, allow_nan=False)
