"""Proves and measures scratchcuda on the GPU of this machine, beside the Python and torch found here: make gpu-check.

It needs no network. Each of two runs ends within 285 seconds and begins with what is worth the most; docs/gpu.md tells
what their parts do. Everything is written into the folder OUT: log.txt, and report.json anew after each part, so that a
run that is killed keeps what it has. ``--dry`` goes the same way without a GPU: the tests run on the emulator, and what
cannot be done is said.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    import torch
except ImportError:
    sys.exit(f"{sys.executable} has no torch, expected a CUDA build beside it: make gpu-check PYTHON=...")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # no installation is needed

from gpu_parts import COUNTERS, PARTS, RUNS, Found, ended, groups_of, left_out, xdist  # noqa: E402
from gpu_predictions import table  # noqa: E402

from scratchcuda.conditions import age  # noqa: E402

DIFFERENCES = "GPU minus emulator, relative by norm"
#: Seconds that a run may take; what is kept of them to stop a command that would take longer, and to tell; what a part
#: has to have to begin; and what pytest may take from the last test that begins to its report.
ALL_SECONDS, SPARE_SECONDS, LEAST_SECONDS, LAST_SECONDS = 285, 18, 15, 12


class Check:
    """One run: where it writes, and how its parts are run.

    Attributes:
        dry: without a GPU.
        select: pytest's expression of the kernel tests that the sanitizers watch.
        only: pytest's expression of all tests that are run, for a quick try.
    """

    def __init__(self, out: Path, dry: bool, select: str, only: str):
        self.out, self.dry, self.select, self.only = out, dry, select, only
        self.end = time.monotonic() + ALL_SECONDS - min(age(), 30)  # what imports have taken, not a clock's fault
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.txt").write_text("")

    def seconds(self, most: float = ALL_SECONDS) -> float:
        """What a command may take that is given so many at most."""
        return max(1.0, min(most, self.end - time.monotonic() - SPARE_SECONDS))

    def run(self, command: list[str], most: float = ALL_SECONDS, **variables: str) -> tuple[int | None, str]:
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
        for seconds, stop in ((self.seconds(most), signal.SIGINT), (12, signal.SIGKILL), (3, signal.SIGKILL)):
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

    def python(self, *arguments: str, most: float = ALL_SECONDS, **variables: str) -> tuple[int | None, str]:
        return self.run([sys.executable, *arguments], most, **variables)

    def pytest(
        self,
        *arguments: str,
        most: float = ALL_SECONDS,
        workers: int = 0,
        select: str = "",
        under: tuple[str, ...] = (),
        **variables: str,
    ) -> Found:
        backend = "emulator" if self.dry else "kernels"
        with tempfile.TemporaryDirectory() as folder:
            xml = Path(folder, "junit.xml")
            command = [*under, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={xml}"]
            command += ["--continue-on-collection-errors", "--backend", backend, *xdist(workers), *arguments]
            command += ["--until", str(time.time() + self.seconds(most) - LAST_SECONDS)]
            if expressions := [f"({expression})" for expression in (select, self.only) if expression]:
                command += ["-k", " and ".join(expressions)]
            # The parts share the cores, and torch would have a thread and a compiler on each for each of them.
            variables |= {"CI": "true", "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            status, output = self.run(command, most, **variables)
            cases = ET.parse(xml).getroot().findall(".//testcase[@name]") if xml.exists() else []
        bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
        skipped = sum(case.find("skipped") is not None for case in cases)
        passed = len(cases) - len(bad) - skipped
        text = f"{passed} passed, {len(bad)} failed, {skipped} skipped"
        result: bool | None = status == 0 and passed > 0
        if "no time is left for more tests" in output:
            text += "; no time was left for the others"
            result = None if passed and not bad else False
        elif status not in (0, 1) or not cases:
            text += f"; {ended(status, output)}"
        failed = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
        return {"passed": result, "text": text, "failed": failed, "output": output} | differences(cases)


def differences(cases: list[ET.Element]) -> Found:
    """By kernel and dtype, the largest difference that a test has recorded."""
    worst: dict[str, dict[str, float]] = {}
    for case in cases:
        found = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if "difference" in found:
            row = worst.setdefault(found["kernel"], {})
            row[found["dtype"]] = max(row.get(found["dtype"], 0), float(found["difference"]))
    return {DIFFERENCES: worst} if worst else {}


def timed(part: Callable[[Check], Found], check: Check) -> Found:
    begin = time.monotonic()
    try:
        found = part(check) if check.seconds() > LEAST_SECONDS else left_out("no time was left")
    except Exception as error:  # costs this part alone
        found = {"passed": False, "text": repr(error)}
    return {"seconds": round(time.monotonic() - begin, 1)} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="RUN or PART",
        default=["first"],
        help=f"{', '.join(RUNS)}, or of {', '.join(PARTS)}",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-check", help="folder for report.json and log.txt")
    parser.add_argument("--select", default="float32", help="the kernel tests that the sanitizers watch, as pytest -k")
    parser.add_argument("--only", default="", help="all tests that are run, as pytest -k")
    parser.add_argument("--dry", action="store_true", help="go through it without a GPU")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS) - set(RUNS):
        parser.error(f"unknown {', '.join(sorted(unknown))}, expected {', '.join([*RUNS, *PARTS])}")
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU here; --dry goes through all parts without one")
    check = Check(arguments.out.resolve(), arguments.dry, arguments.select, arguments.only)
    report: dict[str, Any] = {
        "device": "no GPU" if check.dry else torch.cuda.get_device_name(),
        "dry": check.dry,
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
        "parts": {},
    }
    print(f"{report['device']}, {', '.join(f'{name} {version}' for name, version in report['versions'].items())}")
    writing = threading.Lock()

    def run(name: str, part: Callable[[Check], Found]) -> None:
        found = timed(part, check)
        found.pop("output", None)  # which is in the log
        with writing:
            report["parts"][name] = found
            (check.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            show_part(name, found)

    for group in groups_of(arguments.parts):
        with ThreadPoolExecutor(len(group)) as pool:
            list(pool.map(run, group, group.values()))
        if report["parts"].get("build", {}).get("passed") is False:
            break
    show(report)
    sys.exit(any(found["passed"] is False for found in report["parts"].values()))


def show_part(name: str, found: Found) -> None:
    state = {True: "passed", False: "FAILED", None: "left out"}[found["passed"]]
    print(f"{name:<15}{state:<9}{found['seconds']:>6.0f} s  {found['text']}", flush=True)
    for failed in found.get("failed", [])[:5]:
        print(f"{'':<32}{failed}", flush=True)


def show(report: dict[str, Any]) -> None:
    """What was measured; the figures that were predicted come last."""
    if report["dry"]:
        print("A DRY RUN: it shows that it runs, and measures nothing")
        return
    parts = report["parts"]
    if worst := parts.get("gpu", {}).get(DIFFERENCES):
        dtypes = sorted({dtype for row in worst.values() for dtype in row})
        print(f"\n{DIFFERENCES:<40}" + "".join(f"{dtype.removeprefix('torch.'):>10}" for dtype in dtypes))
        for kernel, row in worst.items():
            print(f"{kernel:<40}" + "".join(f"{row.get(dtype, float('nan')):>10.1e}" for dtype in dtypes))
    for launch, found in parts.get("counters", {}).get("counters", {}).items():
        print(f"\n{launch[:100]}: " + ", ".join(f"{name} {found[name]}" for name in COUNTERS if name in found))
    measured = [part["measured"] for part in parts.values() if part.get("measured")]
    for bar in (bar for found in measured for bar in found.get("bars", [])):
        figure = "unknown" if bar["measured"] is None else f"{bar['measured']:.3g}"
        print(f"{bar['bar']:<75}{bar['target']:>8.3g} {figure:>8}  {'reached' if bar['reached'] else ''}")
    print("\n" + table(parts))


if __name__ == "__main__":
    main()
