"""The figures of an H100 that were predicted before any GPU had run the kernels, beside what make gpu-check measures.

The predictions follow from the machine code, walked through one warp at a time with assumed latencies, so they are
about 30 % off. They are kept as they were made.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

Parts = dict[str, Any]
LARGE = "4096x4096x4096"


class Prediction(NamedTuple):
    """A figure, its unit, from where to where it was expected, and how it is found in the parts of a report."""

    figure: str
    unit: str
    low: float
    high: float
    measured: Callable[[Parts], float]


def row(parts: Parts, label: str) -> dict[str, Any]:
    """Of the benchmark."""
    return next(row for row in parts["bench"]["measured"]["rows"] if row["label"] == label)


def rate(label: str, who: str = "scratchcuda") -> Callable[[Parts], float]:
    """FLOPs of an op."""

    def find(parts: Parts) -> float:
        found = row(parts, label)
        return found["flops"] / found["peers"][who]["seconds"][1] / 1e12

    return find


def of_copy(label: str) -> Callable[[Parts], float]:
    return lambda parts: 100 * row(parts, label)["of copy"]


def over_floor(label: str) -> Callable[[Parts], float]:
    return lambda parts: 1 / row(parts, label)["of limit"]


def step(who: str) -> Callable[[Parts], float]:
    """Of a whole fit of the documents' MLP."""

    def find(parts: Parts) -> float:
        found = row(parts, "mlp float64 fit")
        return found["peers"][who]["seconds"][1] / found["steps"] * 1e6

    return find


def launch(op: str) -> Callable[[Parts], float]:
    """The median of an op's launches in a step of the documents' MLP."""

    def find(parts: Parts) -> float:
        rows = parts["profile-mlp"]["measured"]["rows"]
        times = [row["warm"][1] for row in rows if row["op"] == f"scratchcuda::{op}" for _ in range(row["calls"])]
        return 1e6 * statistics.median(times)

    return find


def gaps(parts: Parts) -> float:
    found = parts["profile-mlp"]["measured"]
    return 1e6 * (found["steps"]["this"]["seconds"][1] - found["seconds in ops"])


TFLOPS, SHARE, TIME, TIMES = "TFLOP/s", "% of a copy", "us", "times the floor"
PREDICTIONS = [
    Prediction("forward, float32", TFLOPS, 33, 33, rate(f"dense none {LARGE} float32")),
    Prediction("input gradient, float32", TFLOPS, 28, 28, rate(f"dense_backward_input {LARGE} float32")),
    Prediction("weight gradient, float32", TFLOPS, 38, 38, rate(f"dense_backward_weights {LARGE} float32")),
    Prediction("forward, float64", TFLOPS, 15, 19, rate(f"dense none {LARGE} float64")),
    Prediction("forward, bfloat16", TFLOPS, 28, 33, rate(f"dense none {LARGE} bfloat16")),
    Prediction("cuBLAS, float32", TFLOPS, 51, 51, rate(f"dense none {LARGE} float32", "torch.addmm")),
    Prediction("cuBLAS, float64", TFLOPS, 55, 62, rate(f"dense none {LARGE} float64", "torch.addmm")),
    Prediction("cuBLAS, bfloat16", TFLOPS, 750, 750, rate(f"dense none {LARGE} bfloat16", "torch.addmm")),
    Prediction("step of the MLP", TIME, 270, 270, step("scratchcuda")),
    Prediction("step of the MLP, torch.nn, CUDA Graph", TIME, 140, 180, step("torch.nn, CUDA Graph")),
    Prediction("an update of the MLP", TIME, 29, 29, launch("dense_update_")),
    Prediction("a forward of the MLP", TIME, 7, 11, launch("dense")),
    Prediction("between the launches of a step of the MLP", TIME, 20, 20, gaps),
    *(
        Prediction(f"{op}, rows of 32768", SHARE, 66, 80, of_copy(f"{op} 1024x32768 float32"))
        for op in ("softmax", "softmax_backward", "cross_entropy classes", "cross_entropy rows")
    ),
    *(
        Prediction(f"{op}, rows of 10", TIMES, 3, 4, over_floor(f"{op} 65536x10 float32"))
        for op in ("softmax", "softmax_backward", "cross_entropy classes")
    ),
    *(
        Prediction(f"{op}, 2^27 elements", SHARE, 88, 97, of_copy(f"{op} {1 << 27} float32"))
        for op in (
            "relu",
            "sigmoid",
            "tanh",
            "relu_backward",
            "sigmoid_backward",
            "tanh_backward",
            "mse",
            "sgd_update_",
            "adam_update_",
        )
    ),
]


def compared(parts: Parts) -> list[tuple[Prediction, float | None]]:
    """Each prediction, and what was measured; None where that is not in the report."""
    found: list[tuple[Prediction, float | None]] = []
    for prediction in PREDICTIONS:
        try:
            found.append((prediction, prediction.measured(parts)))
        except (KeyError, StopIteration, statistics.StatisticsError):
            found.append((prediction, None))
    return found


def table(parts: Parts) -> str:
    """Predicted, measured, and the ratio of the second to the middle of the first."""
    lines = [f"{'an H100':<45}{'predicted':>12}{'measured':>10}{'ratio':>7}"]
    for (figure, unit, low, high, _), measured in compared(parts):
        expected = f"{low}" if low == high else f"{low} to {high}"
        seen = ["unknown", ""] if measured is None else [f"{measured:.3g}", f"{measured * 2 / (low + high):.2f}"]
        lines.append(f"{figure:<45}{expected:>12}{seen[0]:>10}{seen[1]:>7}  {unit}")
    return "\n".join(lines)
