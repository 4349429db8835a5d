"""The parts of make gpu-check: what each runs, and what it tells. docs/gpu.md lists them.

A part gets the check, which runs its commands, and returns whether it has passed (None if it was left out), a line of
text, and what else goes into report.json.
"""

import csv
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scratchcuda._build import toolchain

if TYPE_CHECKING:
    from gpu_check import Check

Found = dict[str, Any]

#: Seconds that a row of a benchmark may still take when no further one begins.
ROW_SECONDS = 15
#: Of the first run: the rows with bars, and those that docs/gpu.md predicts.
ROWS = ["mlp float64 fit", "slr float64 fit", "4096x4096x4096 float", "dense none 4096x4096x4096", "134217728 float32"]
ROWS += ["1024x32768 float32", "softmax 65536x10", "softmax_backward 65536x10", "cross_entropy classes 65536x10"]
#: Of the second: all but torch.compile.
PEERS = ["scratchcuda", "torch.nn-cuda-graph", "jax-jit-of-the-fit", "scratchcuda-overlapping-launches"]
PEERS += ["torch.nn-fused-sgd", "torch.nn-foreach-sgd", "scratchcuda.nn-converted", "jax-jit-of-the-step"]
#: Sections of Nsight Compute, and what the table shows of them.
SECTIONS = ["SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy"]
SECTIONS += ["WarpStateStats"]
COUNTERS = ["Duration", "Compute (SM) Throughput", "DRAM Throughput", "Executed Ipc Active", "Achieved Occupancy"]


def ended(status: int | None, output: str) -> str:
    """How a command has ended that did not end well."""
    return "took too long" if status is None else f"exit status {status}: {output.strip()[-300:]}"


def left_out(why: str) -> Found:
    return {"passed": None, "text": why}


def build(check: "Check") -> Found:
    if check.dry:
        return left_out("no GPU to build for")
    major, minor = torch.cuda.get_device_capability()
    # As setup.py builds it in place, but whatever setuptools is there.
    script = "from pathlib import Path; from scratchcuda._build import extension as it; "
    script += "it.recipe().make(Path('build/gpu'), it.installed())"
    status, output = check.python("-c", script, most=120, TORCH_CUDA_ARCH_LIST=f"{major}.{minor}")
    built = [line for line in output.splitlines() if line.startswith("scratchcuda: building the CUDA kernels")]
    return {"passed": status == 0, "text": "".join(built) if status == 0 else ended(status, output)}


def emulator(check: "Check") -> Found:
    """Here, so that not every part builds one."""
    status, output = check.python("-c", "from scratchcuda.ops import _emulator; _emulator.current()", most=120)
    return {"passed": status == 0, "text": "built, or in the cache" if status == 0 else ended(status, output)}


def bench(check: "Check", file: str, most: float, arguments: list[str]) -> Found:
    json_file = check.out / f"{file}.json"
    limit = ["--seconds", str(max(1.0, check.seconds(most) - ROW_SECONDS))]
    where = ["--dry"] if check.dry else ["--device", "cuda", *limit]
    status, output = check.python("-m", "scratchcuda", "bench", *arguments, *where, "--json", str(json_file), most=most)
    found = json.loads(json_file.read_text()) if json_file.exists() else {"rows": [], "left out": [], "bars": []}
    wrong = [f"{row['label']}: {row['error']}" for row in found["rows"] if "error" in row]
    text = f"{len(found['rows'])} rows, {len(wrong)} failed, {len(found['left out'])} left out"
    if status != 0 and not wrong:
        text += f"; {ended(status, output)}"
    return {"passed": status == 0, "text": text, "failed": wrong, "measured": found}


def compilers(check: "Check") -> Found:
    return left_out("no GPU to compile for") if check.dry else bench(check, "compilers", 285, _COMPILED)


def profile(check: "Check", workload: str, dtype: str) -> Found:
    where = ["--device", "cpu", "--samples", "2"] if check.dry else ["--device", "cuda"]
    command = ["-m", "scratchcuda", "profile", workload, "--dtype", dtype, "--no-compile", *where]
    with tempfile.TemporaryDirectory() as folder:
        status, output = check.python(*command, "--out", folder, most=35)
        if status != 0:
            return {"passed": False, "text": ended(status, output)}
        report = check.out / f"profile-{workload}.html"  # which holds all else
        shutil.copy(Path(folder, "report.html"), report)
        return {"passed": True, "text": str(report), "measured": json.loads(Path(folder, "profile.json").read_text())}


def counters(check: "Check") -> Found:
    """Of one launch each; without a GPU, that they launch."""
    script = "tools/gpu_counters.py"
    if check.dry:
        status, output = check.python(script, "cpu", most=40)
        return {"passed": status == 0, "text": "launched, not measured" if status == 0 else ended(status, output)}
    if not (ncu := tool("ncu")):
        return left_out("there is no Nsight Compute (ncu)")
    # The clocks are for the owner of the machine to set.
    command = [ncu, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "details"]
    command += [f"--section={section}" for section in SECTIONS]
    status, output = check.run([*command, sys.executable, script], 50)
    if refused := re.search("ERR_NVGPUCTRPERM|LibraryNotLoaded", output):
        return left_out(f"Nsight Compute may not read counters here ({refused[0]})")
    found = read_counters(output)
    text = f"{len(found)} launches" if found else ended(status, output)
    return {"passed": status == 0 and bool(found), "text": text, "counters": found}


def read_counters(output: str) -> dict[str, dict[str, str]]:
    """By launch, what Nsight Compute prints as CSV after lines of its own."""
    lines = output.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[begin:]):
        if row.get("Metric Name"):  # not an advice
            of = found.setdefault(f"{row['ID']} {row['Kernel Name']}", {})
            of[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return found


def gpu(check: "Check") -> Found:
    return left_out("no GPU") if check.dry else check.pytest("tests/test_gpu.py", workers=4)


def instructions(check: "Check") -> Found:
    return check.pytest("tests/test_instructions.py")


def sanitizer(check: "Check", kind: str) -> Found:
    found = tool("compute-sanitizer")
    if check.dry or not found:
        return left_out("no GPU" if check.dry else "there is no compute-sanitizer")
    # Each tensor has an allocation of its own, so that an access beside it is seen.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if kind == "memcheck" else {}
    # What the runtime refuses is reported by the ops, and torch may ask for what it can do without.
    options = ("--report-api-errors", "no") if kind == "memcheck" else ()
    # It waits for the first use of CUDA, which here comes after torch's import.
    under = (found, "--tool", kind, *options, "--launch-timeout", "120", "--error-exitcode", "9", "--print-limit", "20")
    result = check.pytest("tests/ops", "-m", "kernels", select=check.select, under=under, **variables)
    if "Device not supported" in result["output"]:
        return left_out("compute-sanitizer does not support this machine")
    if "SUMMARY: " not in result["output"]:
        result |= {"passed": False, "text": f"{result['text']}; compute-sanitizer has not watched"}
    return result


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit."""
    folders = [os.environ.get("PATH", os.defpath), *(str(kit.nvcc.parent) for kit in toolchain.toolkits())]
    return shutil.which(name, path=os.pathsep.join(folders))


def suite(check: "Check") -> Found:
    apart = [f"--ignore=tests/test_{name}.py" for name in ("gpu", "instructions")]
    return check.pytest("tests", *apart, workers=0 if check.dry else 12, most=100)


_FIRST = ["fits", "ops", "--workload=mlp,slr", *(f"--row={row}" for row in ROWS), f"--peers={','.join(PEERS[:2])}"]
_PEERS = ["fits", "steps", "--rounds=7", f"--peers={','.join(PEERS)}"]
_COMPILED = ["fits", "--row=mlp float64 fit", "--peers=scratchcuda,torch.compile-reduce-overhead,torch.compile"]
_COMPILED += ["--rounds=7"]

#: By run, in their order: parts of a group run side by side, and each group has the GPU for itself.
_BUILDS: dict[str, Callable[["Check"], Found]] = {"build": build, "emulator": emulator}
RUNS: dict[str, list[dict[str, Callable[["Check"], Found]]]] = {
    "first": [
        _BUILDS,
        {"bench": partial(bench, file="bench", most=105, arguments=_FIRST)},
        {"profile-mlp": partial(profile, workload="mlp", dtype="float64")},
        {"profile-digits": partial(profile, workload="digits", dtype="float32")},
        {"counters": counters},
        {
            "gpu": gpu,
            "instructions": instructions,
            "memcheck": partial(sanitizer, kind="memcheck"),
            "racecheck": partial(sanitizer, kind="racecheck"),
        },
    ],
    "second": [
        _BUILDS,
        {"suite": suite},
        {"peers": partial(bench, file="peers", most=80, arguments=_PEERS)},
        {"compilers": compilers},
    ],
}
PARTS = list(dict.fromkeys(name for groups in RUNS.values() for group in groups for name in group))


def groups_of(names: list[str]) -> list[dict[str, Callable[["Check"], Found]]]:
    """Those of runs and parts by name."""
    parts = {part for name in names for group in RUNS.get(name, [[name]]) for part in group}
    known = [*RUNS["first"], *RUNS["second"][1:]]
    return [wanted for group in known if (wanted := {name: group[name] for name in group if name in parts})]


def xdist(workers: int) -> list[str]:
    """pytest's arguments for so many processes, where pytest-xdist is there."""
    return ["-n", str(workers), "--dist", "worksteal"] if workers and find_spec("xdist") else []
