"""Breaks the kernels one line at a time, and asks the kernel tests on the emulator whether they notice.

``python tools/mutants.py`` prints a table, ``--write docs/emulator.md`` puts it between its markers. Exit status 1
if a mutant survives. A mutant that the ordinary build does not notice is run again under AddressSanitizer, which
sees what lies outside of a tensor, and ThreadSanitizer, which sees what happens to come in the right order.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from marks import fill

from scratchcuda._build.emulator import sanitizer_environment

ROOT = Path(__file__).resolve().parent.parent

#: file of csrc/kernels, what stands there, what stands there instead
MUTANTS = [
    ("matmul.cuh", "k < k_left ? inside : 0", "k <= k_left ? inside : 0"),
    ("matmul.cuh", "k < k_left && o < outer_left;", "k < k_left && o <= outer_left;"),
    ("matmul.cuh", "o < outer_left && k + count <= k_left", "k + count <= k_left"),
    ("matmul.cuh", "k + e < k_left) values", "k + e <= k_left) values"),
    ("matmul.cuh", "runs &= other.stride[d] % per_access<T> == 0", "runs &= true"),
    ("matmul.cuh", "% 16 == 0;", "% 2 == 0;"),
    ("matmul.cuh", "cp_async_wait_group<Shape::stages - 2>()", "cp_async_wait_group<Shape::stages - 1>()"),
    ("matmul.cuh", "__syncthreads();  // this step's", "// this step's"),
    ("matmul.cuh", "int stage = 0, stage_ahead = 0", "int stage = 0, stage_ahead = 1"),
    ("matmul.cuh", "sums[r][c] += a[r] * b[c]", "sums[r][c] -= a[r] * b[c]"),
    ("matmul.cuh", "column_sums[c] += b[c]", "column_sums[c] = b[c]"),
    ("matmul.cuh", "part * part_rows + r", "r"),
    ("matmul.cuh", "if (i < m && j < n)", "if (i <= m && j < n)"),
    ("matmul.cuh", "if (i_first > 0 || row_rank > 0)", "if (row_rank > 0)"),
    ("matmul.cuh", "std::max<int64_t>(1, a.rows.length)", "a.rows.length"),
    ("dense.cu", "widen(bias[j * bias_stride])", "widen(bias[j])"),
    ("dense.cu", "if (bias) value += widen", "value += widen"),
    ("dense.cu", "value = f.forward(value)", "value = value"),
    ("dense.cu", "if (values.data) {", "if (values.data && i > 0) {"),
    ("dense.cu", "widen(narrow<T>(value)), widen(values", "value, widen(values"),
    ("dense.cu", "widen(values.at(i, j))", "widen(values.at(j, i))"),
    ("dense.cu", "gradient += decay * p", "gradient -= decay * p"),
    ("dense.cu", "if (decay != 0)", ""),
    ("dense.cu", "p - lr * gradient", "p + lr * gradient"),
    ("dense.cu", "split < splits; ++split", "split + 1 < splits; ++split"),
    ("dense.cu", "partials[blockIdx.y * outputs() + i", "partials[i"),
    ("dense.cu", "at >= take.outputs()", "at > take.outputs()"),
    ("activations.cuh", "z < 0 ? A(0)", "z < 1 ? A(0)"),
    ("activations.cuh", "std::exp(-z)", "std::exp(z)"),
    ("activations.cuh", "std::tanh(z)", "(std::exp(z) - std::exp(-z)) / (std::exp(z) + std::exp(-z))"),
    ("activations.cuh", "a <= 0 ? A(0) : delta", "a < 0 ? A(0) : delta"),
    ("activations.cuh", "delta * (A(1) - a) * a", "delta * (A(1) - a)"),
    ("activations.cuh", "A(1) - a * a", "A(1) - a"),
    ("activations.cuh", "z > 0 ? z : slope[0] * z", "z > 0 ? z : z"),
    ("activations.cuh", "a > 0 ? delta : slope[0] * delta", "a >= 0 ? delta : slope[0] * delta"),
    ("activations.cuh", "index == i++", "index == ++i"),
    ("activations.cu", "call.out + at[inputs]", "call.out + at[0]"),
    ("softmax.cu", "lowest<A>()", "-infinity<A>()"),
    ("softmax.cu", "columns, -infinity<A>()", "columns, 0"),
    ("softmax.cu", "a(j, k) * (delta(j, k) - dot)", "a(j, k) * (delta(j, k) + dot)"),
    ("rows.cuh", "padded || j < columns", "padded || j <= columns"),
    ("rows.cuh", "j < columns ? widen(row[j])", "j <= columns ? widen(row[j])"),
    ("rows.cuh", "lowest<A>()", "-infinity<A>()"),
    ("rows.cuh", "sum *= std::exp(largest - score)", "sum *= 1"),
    ("rows.cuh", "sum * std::exp(largest - row_largest)", "sum"),
    ("reduce.cuh", "int w = 1; w < team / warp", "int w = 2; w < team / warp"),
    ("reduce.cuh", "__syncthreads();  // before", "// before"),
    ("losses.cu", "if (gridDim.x == 1)", "if (gridDim.x <= 2)"),
    ("losses.cu", "narrow<T>(sum / count())", "narrow<T>(sum)"),
    ("losses.cu", "b < blocks; b += block", "b + 1 < blocks; b += block"),
    ("losses.cu", "narrow<T>(mse.scale * difference)", "narrow<T>(difference)"),
    ("losses.cu", "sum += difference * difference", "sum += difference"),
    ("losses.cu", "step ? (*step)++ : 0", "step ? *step : 0"),
    ("losses.cu", "if (at < length) loss", "loss"),
    ("losses.cu", "loss[at * stride]", "loss[at]"),
    ("losses.cu", "by_index && target == 0 ? 0 :", "false ? 0 :"),
    ("losses.cu", "classes[i * classes_stride]", "classes[i]"),
    ("losses.cu", "columns, -infinity<A>()", "columns, 0"),
    ("losses.cu", "if (t.index < 0) targets", "if (false) targets"),
    ("losses.cu", "return {{}, true, columns}", "return {{}, true, index}"),
    ("losses.cu", "ignores && index == ignored", "index == ignored"),
    ("losses.cu", "count += call.target(i).index < call.scores.columns.length", "count += 1"),
    ("losses.cu", "counted ? *counted : all", "all"),
    ("losses.cu", "count > 0 ? 1 / count : 0", "1 / count"),
    ("losses.cu", "partials + partial_sums(blocks)", "partials"),
    ("losses.cu", "index < columns ? index : -1", "index <= columns ? index : -1"),
    ("losses.cu", "* targets - target_j", "- target_j"),
    ("losses.cu", "i < call.scores.rows.length; i += step", "i < call.scores.rows.length; i += step + 1"),
    ("batch.cu", "threadIdx.x / rows.team", "threadIdx.x"),
    ("batch.cu", "*batch.step * batch.batch_size", "*batch.step * batch.m"),
    ("batch.cu", "i >= batch.m || ", ""),
    ("batch.cu", "at < 0 || ", ""),
    ("batch.cu", "at >= batch.samples", "at > batch.samples"),
    ("batch.cu", "at * batch.order_stride", "at"),
    ("batch.cu", "sample < 0 || ", ""),
    ("batch.cu", "sample >= rows.samples", "sample > rows.samples"),
    ("batch.cu", "u * rows.unit_stride", "u * sizeof(Unit)"),
    ("batch.cu", "sample * rows.row_stride", "sample * rows.units * rows.unit_bytes"),
    ("batch.cu", "columns == 1 || column_stride == bytes", "true"),
    ("batch.cu", "addresses | static_cast<uintptr_t>(row_stride)", "static_cast<uintptr_t>(row_stride)"),
    ("batch.cu", "static_cast<uintptr_t>(row_stride) | ", ""),
    ("batch.cu", " | static_cast<uintptr_t>(columns * bytes)", ""),
    ("batch.cu", "std::max(batch.parts[0].team, batch.parts[1].team)", "batch.parts[0].team"),
    ("sgd.cu", "if (sgd.maximize) g = -g;", ""),
    ("sgd.cu", "if (sgd.weight_decay != 0) ", ""),
    ("sgd.cu", "sgd.is_first_step ? g :", "false ? g :"),
    ("sgd.cu", "A(1 - sgd.dampening)", "A(1)"),
    ("sgd.cu", "sgd.nesterov ? g + A(sgd.momentum) * m : m", "m"),
    ("sgd.cu", "next < table.tensors && ", ""),
    ("sgd.cu", "<= blockIdx.x", "< blockIdx.x"),
    ("sgd.cu", "flat &= elements.dims <= 2", "flat &= true"),
    ("layout.cuh", "dim_stride == size[last] * stride[last]", "true"),
    ("layout.cuh", "sum += i % size[d] * stride[d]", "sum += i * stride[d]"),
    ("layout.cuh", "bool merges = top >= 0", "bool merges = false"),
    ("layout.cuh", "elements.packed = elements.dims == 1", "elements.packed = true"),
    ("layout.cuh", "elements.stride[t][0] == 1 && ", ""),
    ("layout.cuh", "address % 16 == 0", "address % 1 == 0"),
    ("layout.cuh", "elements.packed && first + count <= elements.length", "elements.packed"),
    ("layout.cuh", "if (i >= elements.length)", "if (i > elements.length)"),
    ("instructions.cuh", "if (e < valid)", "if (e <= valid)"),
    ("launch.cuh", "if constexpr (shared_bytes > shared", "if constexpr (shared_bytes > 2 * shared"),
]


#: Ways to build the emulator, by SCRATCHCUDA_EMULATOR, and which tests to run; races are looked for in one dtype.
BUILDS = {"": [], "sm_75": [], "address": [], "thread": ["-k", "float32 and (layouts or rows)"]}


own = threading.local()


def begin(place: str) -> None:
    """A folder for each thread, which compiles but what differs from mutant to mutant."""
    own.folder = tempfile.mkdtemp(dir=place)
    for part in ("scratchcuda", "csrc", "tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, Path(own.folder, part))


def fails(build: str, first: str) -> bool:
    """Whether a kernel test fails in this build of the sources in the folder; those of the first file run first."""
    special = sanitizer_environment(build) if build in ("address", "thread") else {"SCRATCHCUDA_EMULATOR": build}
    environment = os.environ | special | {"PYTHONPATH": own.folder, "SCRATCHCUDA_CACHE": f"{own.folder}/cache"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-m", "kernels", "--backend", "emulator"]
    command += [*BUILDS[build], *([first] if Path(own.folder, first).exists() else []), "tests/ops"]
    done = subprocess.run(command, cwd=own.folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == pytest.ExitCode.USAGE_ERROR:
        sys.exit(f"a mutant that does not compile shows nothing:\n{done.stderr}")
    return done.returncode != 0


def noticed(mutant: tuple[str, str, str] | None) -> str | None:
    """The first build whose tests fail, or None if none does. No mutant at all is the proof that they can pass."""
    file, before, after = mutant or ("launchers.h", "", "")
    path = Path(own.folder, "csrc/kernels", file)
    source = path.read_text()
    if before not in source:
        sys.exit(f"{file} no longer holds {before!r}")
    path.write_text(source.replace(before, after, 1))
    try:
        return next((build for build in BUILDS if fails(build, f"tests/ops/test_{path.stem}.py")), None)
    finally:
        path.write_text(source)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a Markdown file with the markers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(os.cpu_count(), "", begin, (place,)) as pool:
        unchanged, *found = pool.map(noticed, [None, *MUTANTS])
    if unchanged is not None:
        sys.exit(f"the tests fail without any mutant, build {unchanged!r}")
    lines = ["| file | instead of | there stands | noticed by |", "|---|---|---|---|"]
    for (file, before, after), build in zip(MUTANTS, found, strict=True):
        by = "**nobody**" if build is None else build or "plain"
        before, after = (text.replace("|", "\\|") for text in (before, after or " "))
        lines.append(f"| {file} | `{before}` | `{after}` | {by} |")
    table = "\n".join(lines)
    if arguments.write:
        fill(arguments.write, "mutants", table)
    print(table)
    return int(None in found)


if __name__ == "__main__":
    sys.exit(main())
