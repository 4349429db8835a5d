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
    ("dense.cu", "if (backward) {", "if (backward && i > 0) {"),
    ("dense.cu", "if (values.data) values.at(i, j) = z", "values.at(i, j) = z"),
    ("dense.cu", "values.at(i, j) = z", "values.at(i, j) = narrow<T>(f.forward(value))"),
    ("dense.cu", "value = widen(z)", ""),
    ("dense.cu", "backward && values, Chosen", "backward, Chosen"),
    ("dense.cu", "widen(narrow<T>(value)), widen(values", "value, widen(values"),
    ("dense.cu", "widen(values.at(i, j))", "widen(values.at(j, i))"),
    ("dense.cu", "gradient += decay * p", "gradient -= decay * p"),
    ("dense.cu", "if (decay != 0)", ""),
    ("dense.cu", "p - lr * gradient", "p + lr * gradient"),
    ("dense.cu", "w.rows.length + (b != nullptr)", "w.rows.length"),
    ("dense.cu", "if (!b) return;", ""),
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
    ("activations.cuh", "alpha[0] * std::expm1(z)", "alpha[0] * (std::exp(z) - A(1))"),
    ("activations.cuh", "z <= 0 ? delta * alpha[0] * std::exp(z)", "z <= 0 ? delta * std::exp(z)"),
    ("activations.cuh", "p[0] * z > p[1] ? z :", "z > p[1] ? z :"),
    ("activations.cuh", "std::log1p(std::exp(p[0] * z)) / p[0]", "std::log1p(std::exp(p[0] * z))"),
    ("activations.cuh", "std::log1p(std::exp(p[0] * z))", "std::log(A(1) + std::exp(p[0] * z))"),
    ("activations.cuh", "p[0] * z > p[1] ? delta :", "z > p[1] ? delta :"),
    ("activations.cuh", "delta / (A(1) + std::exp(-p[0] * z))", "delta / (A(1) + std::exp(p[0] * z))"),
    ("activations.cuh", "return z / (A(1) + std::exp(-z))", "return z / (A(1) + std::exp(z))"),
    ("activations.cuh", "delta * s * (A(1) + z * (A(1) - s))", "delta * s * (A(1) + z * s)"),
    ("activations.cuh", "z * std::erfc(A(-sqrt_half) * z)", "z * (A(1) + std::erf(A(sqrt_half) * z))"),
    ("activations.cuh", "std::exp(A(-0.5) * z * z)", "std::exp(-z * z)"),
    ("activations.cuh", "A(-sqrt_half) * z) + z *", "A(-sqrt_half) * z) - z *"),
    ("activations.cuh", "A(1) + A(cubic) * z * z", "A(1) + A(cubic) * z"),
    ("activations.cuh", "A(3 * cubic)", "A(cubic)"),
    ("activations.cuh", "index == i++", "index == ++i"),
    ("activations.cu", "call.out + at[inputs]", "call.out + at[0]"),
    ("dropout.cu", "* widen(factors", "+ widen(factors"),
    ("dropout.cu", "noise + at[1]", "noise + at[0]"),
    ("dropout.cu", "(elements.length + block - 1) / block", "elements.length / block"),
    ("softmax.cu", "lowest<A>()", "-infinity<A>()"),
    ("softmax.cu", "columns, -infinity<A>()", "columns, 0"),
    ("softmax.cu", "a(j, k) * (delta(j, k) - dot)", "a(j, k) * (delta(j, k) + dot)"),
    ("rows.cuh", "padded || j < columns", "padded || j <= columns"),
    ("rows.cuh", "j < columns ? widen(row[j])", "j <= columns ? widen(row[j])"),
    ("rows.cuh", "lowest<A>()", "-infinity<A>()"),
    ("rows.cuh", "sum *= std::exp(largest - score)", "sum *= 1"),
    ("rows.cuh", "sum * std::exp(largest - row_largest)", "sum"),
    ("reduce.cuh", "if constexpr (team >= warp)", "if constexpr (true)"),
    ("reduce.cuh", "int w = 1; w < team / warp", "int w = 2; w < team / warp"),
    ("reduce.cuh", "__syncthreads();  // before", "// before"),
    ("loss_sum.cuh", "if (gridDim.x == 1)", "if (gridDim.x <= 2)"),
    ("loss_sum.cuh", "narrow<T>(sum / count())", "narrow<T>(sum)"),
    ("loss_sum.cuh", "b < blocks; b += block", "b + 1 < blocks; b += block"),
    ("loss_sum.cuh", "step ? (*step)++ : 0", "step ? *step : 0"),
    ("loss_sum.cuh", "if (at < length) loss", "loss"),
    ("loss_sum.cuh", "loss[at * stride]", "loss[at]"),
    ("loss_sum.cuh", "counted ? *counted : all", "all"),
    ("losses.cu", "sum += value", "sum = value"),
    ("losses.cu", "F::value(p, t, parameter) * operand(first_weight)", "F::value(p, t, parameter)"),
    ("losses.cu", "scale * operand(first_weight) * operand(of_delta)", "scale * operand(of_delta)"),
    ("losses.cu", "scale * operand(first_weight) * operand(of_delta)", "scale * operand(first_weight)"),
    ("losses.cu", "operand(first_weight + 1) : call.parameter", "operand(first_weight) : call.parameter"),
    ("losses.cu", "scale *= widen(*call.delta)", "scale *= 1"),
    ("losses.cu", "if (call.in[t]) return widen", "if (false) return widen"),
    ("losses.cu", "asked != Asked::value || call.out", "asked != Asked::value"),
    ("losses.cu", "A(F::factor) / terms", "A(F::factor)"),
    ("losses.cu", "A(F::factor) / terms", "A(1) / terms"),
    ("losses.cu", "asks.reduction == Reduction::mean ?", "asks.reduction != Reduction::none ?"),
    ("losses.cu", "tensor.size[d] != 1 && tensor.stride[d] != 0", "tensor.stride[d] > 1"),
    ("losses.cu", "(elements + block_elements - 1) / block_elements", "elements / block_elements"),
    ("losses.cuh", "A(x > 0) - A(x < 0)", "A(x > 0) - A(x <= 0)"),
    ("losses.cuh", "std::abs(p - t)", "p - t"),
    ("losses.cuh", "difference < -delta ? -delta", "difference < -delta ? delta"),
    ("losses.cuh", "cut * A(0.5)", "cut"),
    ("losses.cuh", "std::abs(difference) >= beta", "std::abs(difference) > beta"),
    ("losses.cuh", "slope * (A(0.5) * beta)", "A(0.5) * beta"),
    ("losses.cuh", "std::log1p(-p)", "std::log(1 - p)"),
    ("losses.cuh", "if (rest * t < 0)", "if (rest * t > 1)"),
    ("losses.cuh", "A(-100)) + t", "A(-1000)) + t"),
    ("losses.cuh", "std::log(p), A(-100)", "std::log(p), A(-1000)"),
    ("losses.cuh", 'variance < 0 ? A(std::nan(""))', 'variance < -1 ? A(std::nan(""))'),
    ("losses.cuh", "A(1e-12)", "A(1e-13)"),
    ("losses.cuh", "std::log1p(std::exp(-std::abs(x)))", "std::log1p(std::exp(-x))"),
    ("losses.cuh", "(x < 0 ? A(0) : x) + rest", "x + rest"),
    ("losses.cuh", "positive * t * ((x < 0", "t * ((x < 0"),
    ("losses.cuh", "const A e = std::exp(-std::abs(x))", "const A e = std::exp(-x)"),
    ("losses.cuh", "positive * t * (x < 0 ? larger", "t * (x < 0 ? larger"),
    ("cross_entropy.cu", "by_index && target == 0 ? 0 :", "false ? 0 :"),
    ("cross_entropy.cu", "by_index && call.spread == 0 && j != index", "false"),
    ("cross_entropy.cu", "weight * call.class_weight(j) * (", "call.class_weight(j) * ("),
    ("cross_entropy.cu", "weight * call.class_weight(j) * (", "weight * ("),
    ("cross_entropy.cu", "call.unsmoothed * t", "t"),
    ("cross_entropy.cu", "t + call.spread)", "t)"),
    ("cross_entropy.cu", "indices[i * index_stride]", "indices[i]"),
    ("cross_entropy.cu", "row_weights[i * row_stride]", "row_weights[i]"),
    ("cross_entropy.cu", "class_weights[j * class_stride]", "class_weights[j]"),
    ("cross_entropy.cu", "columns, -infinity<A>()", "columns, 0"),
    ("cross_entropy.cu", "if (t.index < 0) targets", "if (false) targets"),
    ("cross_entropy.cu", "true, columns, 0}", "true, columns, weight}"),
    ("cross_entropy.cu", "true, columns, 0}", "true, index, 0}"),
    ("cross_entropy.cu", "ignores && index == ignored", "index == ignored"),
    ("cross_entropy.cu", "index < columns ? index : -1", "index <= columns ? index : -1"),
    ("cross_entropy.cu", "picks ? t.weight * call.class_weight(t.index) : t.weight", "t.weight"),
    ("cross_entropy.cu", "int64_t(blockIdx.x) * block + threadIdx.x; i < call", "threadIdx.x; i < call"),
    ("cross_entropy.cu", "A* const counted = partials + most_partials(scores, true)", "A* const counted = partials"),
    ("cross_entropy.cu", "t.index < columns ? above / call.loss.count() : 0", "above / call.loss.count()"),
    ("cross_entropy.cu", "above / call.loss.count()", "1 / call.loss.count()"),
    ("cross_entropy.cu", "call.deltas.offset(i)", "i"),
    ("cross_entropy.cu", "* targets - target_j", "- target_j"),
    ("cross_entropy.cu", "loss = t.loss(targets, widen(z_row[t.index])", "loss = t.loss(1, widen(z_row[t.index])"),
    ("cross_entropy.cu", "row_loss = reduce<team>(row_loss, Add{}, shared)", "row_loss *= 1"),
    ("cross_entropy.cu", "i < call.scores.rows.length; i += step", "i < call.scores.rows.length; i += step + 1"),
    ("cross_entropy.cu", "Reduction::mean ? static_cast<A>(rows) : A(1)", "Reduction::mean ? A(1) : A(1)"),
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
    ("sgd.cu", "maximize ? -of[g] : of[g]", "of[g]"),
    ("sgd.cu", "if (weight_decay != 0) ", ""),
    ("sgd.cu", "is_first_step ? grad :", "false ? grad :"),
    ("sgd.cu", "A(1 - dampening)", "A(1)"),
    ("sgd.cu", "nesterov ? grad + A(momentum) * of[m] : of[m]", "of[m]"),
    ("sgd.cu", "lr = rates[0];", ""),
    ("sgd.cu", "(t == m && momentum != 0)", "false"),
    ("adam.cu", "maximize ? -of[g] : of[g]", "of[g]"),
    ("adam.cu", "!decoupled && weight_decay != 0", "weight_decay != 0"),
    ("adam.cu", "!decoupled && weight_decay != 0", "!decoupled"),
    ("adam.cu", "if (decoupled) kept", "kept"),
    ("adam.cu", "1 - lr * weight_decay", "1 - weight_decay"),
    ("adam.cu", "lr / c1, correction2 = c2", "lr, correction2 = c2"),
    ("adam.cu", "lr / c1, correction2 = c2", "lr / c1"),
    ("adam.cu", "rates[2 * stride]", "rates[stride]"),
    ("adam.cu", "of[m] + weight * change", "of[m] + change"),
    ("adam.cu", "grad - A(beta1) * change", "grad"),
    ("adam.cu", "A(1 - beta2) * grad * grad", "A(1 - beta2) * grad"),
    ("adam.cu", "of[u] > of[v] || ", ""),
    ("adam.cu", " || of[u] != of[u]", ""),
    ("adam.cu", "amsgrad ? of[u] : of[v]", "of[v]"),
    ("adam.cu", "A(kept) * of[p]", "of[p]"),
    ("adam.cu", "root + A(eps)", "root"),
    ("adam.cu", "t != g && (t != u || amsgrad)", "t == p"),
    ("tensor_lists.cuh", "*table.rates.turn - 1", "*table.rates.turn"),
    ("tensor_lists.cuh", "step < 0 || ", ""),
    ("tensor_lists.cuh", "step >= table.rates.steps", "step > table.rates.steps"),
    ("tensor_lists.cuh", "step * table.rates.row_stride", "step"),
    ("tensor_lists.cuh", "next < table.tensors && ", ""),
    ("tensor_lists.cuh", "<= blockIdx.x", "< blockIdx.x"),
    ("tensor_lists.cuh", "flat &= elements.dims <= 2", "flat &= true"),
    ("layout.cuh", "dim_stride == size[last] * stride[last]", "true"),
    ("layout.cuh", "d == along ?", "d == 0 ?"),
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
