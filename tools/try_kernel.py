"""After an edit in csrc/kernels: its tests on the emulator, a line for each fault, and a training beside torch.nn.

``python tools/try_kernel.py softmax`` is ``make try KERNEL=softmax``; further arguments go to pytest. Exit status 1 if
a test fails or the trainings disagree. The tests run in the emulator's usual build alone; ``make test`` has the other.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import time
from multiprocessing import Process
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/test_kernels.py"
#: What the tests are named after.
KERNELS = sorted(["matmul", *(path.stem for path in (ROOT / "csrc/kernels").glob("*.cu"))])
#: After the first failure: the same mistake shows in one test after another.
SECONDS = 8
#: The command line, whose errors are a kernel's here: without Python's frames.
TRAIN = "import sys; sys.tracebacklimit = 0; from scratchcuda.__main__ import main; main()"


class Faults:
    """Of the failures of an op in a dtype, and of those of a test that name neither, the first: what is wrong."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.end = math.inf

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)  # none where the process died
            message = (crash.message if crash else report.longreprtext).partition("\n")[0]
            what, _, how = message.removeprefix("AssertionError: ").partition(": ")
            test = report.nodeid.partition("::")[2]
            kind = re.match(r"(\w+).* in (\w+)", what)
            lines = "\n    ".join(filter(None, (what, how, test)))
            self.found.setdefault(" ".join(kind.groups()) if kind else test.partition("[")[0], lines)
            self.end = min(self.end, time.monotonic() + SECONDS)
        if time.monotonic() > self.end:
            pytest.exit("this is enough to tell", pytest.ExitCode.TESTS_FAILED)


def run_tests(kernel: str, options: list[str]) -> None:
    faults = Faults()
    briefly = ["-q", "--tb=no", "--no-summary", "--hypothesis-profile=brief"]
    status = pytest.main([TESTS, "--backend=emulator", "-k", kernel, *briefly, *options], plugins=[faults])
    for fault in faults.found.values():
        print(fault)
    sys.exit(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel")
    parser.add_argument("--workload", default="mlp", help="of scratchcuda compare")
    arguments, options = parser.parse_known_args()
    if arguments.kernel not in KERNELS:
        sys.exit(f"KERNEL is {arguments.kernel!r}, expected one of {', '.join(KERNELS)}")
    os.chdir(ROOT)
    os.environ["SCRATCHCUDA_BACKEND"] = "emulator"
    os.environ.setdefault("SCRATCHCUDA_EMULATOR", "")
    tests = Process(target=run_tests, args=(arguments.kernel, options))  # it may die of a kernel
    tests.start()
    tests.join()
    status = tests.exitcode or 0
    if status > pytest.ExitCode.TESTS_FAILED:  # it does not compile, say
        return status
    train = [sys.executable, "-c", TRAIN, "compare", arguments.workload, "--epochs", "8", "--repeats", "1"]
    trained = subprocess.run(train, check=False).returncode
    if status:
        print(f"The tests of {arguments.kernel} fail, as said above.")
    return int(trained or bool(status))


if __name__ == "__main__":
    sys.exit(main())
