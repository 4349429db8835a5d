"""Proves and measures scratchcuda on the GPU of this machine, beside the Python and torch found here: make gpu-check.

It needs no network and ends within 8 minutes. Its parts, each of which can be run alone:

- build: the CUDA extension for the card at hand, in place.
- suite: all tests on the backend "kernels", that is on CUDA tensors; then, with these,
- instructions: each instruction wrapper against its emulation, bit for bit, and
- gpu: streams, graphs, offsets, and GPU minus emulator by kernel.
- memcheck, racecheck: tests of all kernels under compute-sanitizer.
- profile: scratchcuda profile of the digits.
- bench: scratchcuda bench: fits, steps and ops. These two come last, and each has the GPU for itself; the parts before
  them run side by side.

Everything is written into the folder OUT: report.json and log.txt. ``--dry`` goes the same way without a GPU: the
tests run on the emulator, and what cannot be done is said.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # no installation is needed

from scratchcuda._build import toolchain  # noqa: E402

DIFFERENCES = "GPU minus emulator, relative by norm"
#: Seconds that all of it may take, and each part.
ALL_SECONDS, BUILD_SECONDS, TEST_SECONDS, PROFILE_SECONDS, BENCH_SECONDS = 470, 240, 200, 60, 160

#: Beside torch.nn; compilers would take all the time there is.
PEERS = [
    f"--peers={peer}"
    for peer in (
        "scratchcuda",
        "scratchcuda, overlapping launches",
        "scratchcuda.nn, converted",
        "torch.nn, fused SGD",
        "torch.nn, CUDA Graph",
        "JAX, jit of the fit",
    )
]


class Check:
    """One run: where it writes, and how its parts are run.

    Attributes:
        dry: without a GPU.
        select: pytest's expression of the kernel tests that the sanitizers watch.
        only: pytest's expression of all tests that are run, for a quick try.
    """

    def __init__(self, out: Path, dry: bool, select: str, only: str):
        self.out, self.dry, self.select, self.only = out, dry, select, only
        self.end = time.monotonic() + ALL_SECONDS
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.txt").write_text("")

    def seconds(self, most: float) -> float:
        """What a part may take that is given so many at most, and some to stop."""
        return max(1.0, min(most, self.end - time.monotonic()) - 15)

    def run(self, command: list[str], most: float, **variables: str) -> tuple[int | None, str]:
        """The exit status, or None if it took too long, and the output."""
        # This checkout comes before an installed scratchcuda, and tools beside this Python before others.
        first = {"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)}
        found = {name: os.pathsep.join([path, *filter(None, [os.environ.get(name)])]) for name, path in first.items()}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | found | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        # First as Ctrl-C, to which pytest tells what it has found so far; then with all that it has started.
        for seconds, stop in ((self.seconds(most), signal.SIGINT), (10, signal.SIGKILL), (5, signal.SIGKILL)):
            try:
                output = process.communicate(timeout=seconds)[0]
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, stop)
                output = ""
        status = process.returncode if stop is signal.SIGINT else None
        with open(self.out / "log.txt", "a") as log:
            log.write(f"$ {' '.join(command)}\n{output}\nexit status: {status}\n\n")
        return status, output

    def pytest(self, *arguments: str, select: str = "", under: tuple[str, ...] = (), **variables: str) -> dict:
        backend = "emulator" if self.dry else "kernels"
        with tempfile.TemporaryDirectory() as folder:
            xml = Path(folder, "junit.xml")
            command = [*under, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={xml}"]
            command += ["--continue-on-collection-errors", "--backend", backend, *arguments]
            if expressions := [f"({expression})" for expression in (select, self.only) if expression]:
                command += ["-k", " and ".join(expressions)]
            # The parts share the cores, and torch would have a thread on each for each of them.
            status, output = self.run(command, TEST_SECONDS, CI="true", OMP_NUM_THREADS="2", **variables)
            cases = ET.parse(xml).getroot().findall(".//testcase") if xml.exists() else []
        bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
        skipped = sum(case.find("skipped") is not None for case in cases)
        passed = len(cases) - len(bad) - skipped
        text = f"{passed} passed, {len(bad)} failed, {skipped} skipped"
        if status not in (0, 1) or not cases:
            text += "; took too long" if status is None else f"; exit status {status}: {output.strip()[-200:]}"
        failed = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
        return {"passed": status == 0 and passed > 0, "text": text, "failed": failed} | differences(cases)


def differences(cases: list[ET.Element]) -> dict:
    """By kernel and dtype, the largest difference that a test has recorded."""
    worst: dict[str, dict[str, float]] = {}
    for case in cases:
        found = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if "difference" in found:
            row = worst.setdefault(found["kernel"], {})
            row[found["dtype"]] = max(row.get(found["dtype"], 0), float(found["difference"]))
    return {DIFFERENCES: worst} if worst else {}


def build(check: Check) -> dict:
    if check.dry:
        return {"passed": None, "text": "no GPU to build for"}
    major, minor = torch.cuda.get_device_capability()
    variables = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    status, output = check.run(command, BUILD_SECONDS, **variables)
    # Here, so that not every part builds one.
    check.run([sys.executable, "-c", "from scratchcuda import _emulator; _emulator.current()"], BUILD_SECONDS)
    built = [line for line in output.splitlines() if line.startswith("scratchcuda: building the CUDA kernels")]
    return {"passed": status == 0, "text": "".join(built) or output.strip()[-200:] or "took too long"}


def suite(check: Check) -> dict:
    return check.pytest("tests", "--ignore=tests/test_gpu.py", "--ignore=tests/test_instructions.py")


def instructions(check: Check) -> dict:
    return check.pytest("tests/test_instructions.py")


def gpu(check: Check) -> dict:
    return {"passed": None, "text": "no GPU"} if check.dry else check.pytest("tests/test_gpu.py")


def sanitizer(tool: str) -> Callable[[Check], dict]:
    def part(check: Check) -> dict:
        folders = [os.environ.get("PATH", os.defpath), *(str(kit.nvcc.parent) for kit in toolchain.toolkits())]
        found = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
        if check.dry or not found:
            return {"passed": None, "text": "no GPU" if check.dry else "there is no compute-sanitizer"}
        # Each tensor has an allocation of its own, so that an access beside it is seen.
        variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
        # What the runtime refuses is reported by the ops, and torch may ask for what it can do without.
        options = ("--report-api-errors", "no") if tool == "memcheck" else ()
        under = (found, "--tool", tool, *options, "--error-exitcode", "9", "--print-limit", "20")
        return check.pytest("tests/test_kernels.py", select=check.select, under=under, **variables)

    return part


def bench(check: Check) -> dict:
    # No row begins after these seconds; one can take some time.
    command = [sys.executable, "-m", "scratchcuda", "bench", "fits", "steps", "ops", *PEERS]
    command += ["--seconds", str(check.seconds(BENCH_SECONDS) - 25)]
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder, "gpu.json")
        command += ["--json", str(measured), *(["--dry"] if check.dry else ["--device", "cuda"])]
        status, output = check.run(command, BENCH_SECONDS)
        found = json.loads(measured.read_text()) if measured.exists() else {}
    passed = status == 0 and bool(found)
    begin = output.rfind(" bar ") if passed else -2000
    return {"passed": passed, "text": output[begin:].rstrip() or "took too long", "measured": found}


def profile(check: Check) -> dict:
    dry = ["slr", "--device", "cpu", "--no-compile", "--samples", "2"]
    what = dry if check.dry else ["digits", "--device", "cuda", "--dtype", "float32"]
    command = [sys.executable, "-m", "scratchcuda", "profile", *what, "--out", str(check.out / "profile")]
    status, output = check.run(command, PROFILE_SECONDS)
    return {"passed": status == 0, "text": output[-2000:].strip() or "took too long"}


PARTS = {
    "build": build,
    "suite": suite,
    "instructions": instructions,
    "gpu": gpu,
    "memcheck": sanitizer("memcheck"),
    "racecheck": sanitizer("racecheck"),
    "profile": profile,
    "bench": bench,
}
ALONE = ("build", "profile", "bench")


def timed(part: Callable[[Check], dict], check: Check) -> dict:
    begin = time.monotonic()
    try:
        found = part(check)
    except Exception as error:  # costs this part alone
        found = {"passed": False, "text": repr(error)}
    return {"seconds": round(time.monotonic() - begin, 1)} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-check", help="folder for report.json and log.txt")
    parser.add_argument("--select", default="float32", help="the kernel tests that the sanitizers watch, as pytest -k")
    parser.add_argument("--only", default="", help="all tests that are run, as pytest -k")
    parser.add_argument("--dry", action="store_true", help="go through it without a GPU")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}, expected {', '.join(PARTS)}")
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU here; --dry goes through all parts without one")
    check = Check(arguments.out, arguments.dry, arguments.select, arguments.only)
    parts = [name for name in PARTS if name in (arguments.parts or PARTS)]
    report = {
        "device": "none: a dry run" if check.dry else torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
        "parts": {},
    }
    side_by_side = [name for name in parts if name not in ALONE]
    for names in (["build"], side_by_side, ["profile"], ["bench"]):
        wanted = [name for name in names if name in parts]
        with ThreadPoolExecutor(len(PARTS)) as pool:
            found = pool.map(lambda name: timed(PARTS[name], check), wanted)
            report["parts"] |= dict(zip(wanted, found, strict=True))
        (check.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")  # what is there is there
        if "build" in names and report["parts"].get("build", {}).get("passed") is False:
            break
    show(report)
    sys.exit(any(found["passed"] is False for found in report["parts"].values()))


def show(report: dict) -> None:
    if worst := report["parts"].get("gpu", {}).get(DIFFERENCES):
        dtypes = sorted({dtype for row in worst.values() for dtype in row})
        print(f"\n{DIFFERENCES:<40}" + "".join(f"{dtype.removeprefix('torch.'):>10}" for dtype in dtypes))
        for kernel, row in worst.items():
            print(f"{kernel:<40}" + "".join(f"{row.get(dtype, float('nan')):>10.1e}" for dtype in dtypes))
    if "bench" in report["parts"]:
        print("\n" + report["parts"]["bench"]["text"])
    print(f"\n{report['device']}, {', '.join(f'{name} {version}' for name, version in report['versions'].items())}")
    for name, found in report["parts"].items():
        state = {True: "passed", False: "FAILED", None: "left out"}[found["passed"]]
        text = "its last table stands above" if name == "bench" and found["passed"] else found["text"]
        print(f"{name:<13}{state:<9}{found['seconds']:>6.0f} s  {text}")
        for test in found.get("failed", [])[:5]:
            print(f"{'':<30}{test}")


if __name__ == "__main__":
    main()
