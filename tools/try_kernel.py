"""After an edit in csrc/kernels: its tests on the emulator, a line for each fault, and a training beside torch.nn.

``python tools/try_kernel.py softmax`` is ``make try KERNEL=softmax``; further arguments go to pytest, where ``-k``
chooses among the tests of this kernel. Exit status 1 if a test fails or does not end, or the trainings disagree. The
tests run in the emulator's usual build alone; ``make test`` has the other.
"""

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from scratchcuda.options import NAMES

ROOT = Path(__file__).resolve().parent.parent
#: What tests, or their files, are named after.
KERNELS = sorted(["matmul", *(path.stem for path in (ROOT / "csrc/kernels").glob("*.cu"))])
#: Workloads that run all of a kernel of which the documents' network runs a part.
TRAININGS = {"cross_entropy": ["breast-cancer"]}
#: After the first failure: the same mistake shows in one test after another.
SECONDS = 8
#: No test of a kernel that ends takes as long.
MOST_SECONDS = 60
#: The command line, whose errors are a kernel's here: without Python's frames.
TRAIN = "import sys; sys.tracebacklimit = 0; from scratchcuda.__main__ import main; main()"


class Faults:
    """Of the failures of an op in a dtype, and of those of a test that name neither, the first: what is wrong.

    They are told as each test begins, with its name, and at the end: the process may die of a kernel.
    """

    def __init__(self, told: Connection) -> None:
        self.told = told
        self.found: dict[str, str] = {}
        self.end = math.inf

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.told.send((nodeid.partition("::")[2], [*self.found.values()]))

    def pytest_sessionfinish(self) -> None:
        self.told.send(("", [*self.found.values()]))

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


def run_tests(which: str, options: list[str], told: Connection) -> None:
    briefly = ["-q", "--tb=no", "--no-summary", "--hypothesis-profile=brief"]
    briefly += ["--capture=sys", "-p", "no:faulthandler"]  # the last words of a kernel, without Python's frames
    chosen = ["tests/ops", "-m", "kernels", "--backend=emulator", "-k", which]
    sys.exit(pytest.main([*chosen, *briefly, *options], plugins=[Faults(told)]))


def tested(which: str, options: list[str]) -> int:
    """The exit status of the tests, in a process that may die of a kernel; says what is wrong."""
    heard, told = Pipe(duplex=False)
    tests = Process(target=run_tests, args=(which, options, told))
    tests.start()
    told.close()
    test, faults = "", []
    while heard.poll(MOST_SECONDS if test else None):
        try:
            test, faults = heard.recv()
        except EOFError:
            break
    else:
        tests.kill()
        faults.append(f"\n{test} has run for {MOST_SECONDS} seconds: a kernel does not end")
        sys.exit("\n".join(faults))
    tests.join()
    status = tests.exitcode or 0
    if status < 0:
        faults.append(f"\n{test or which} died of {signal.Signals(-status).name}")
    for fault in faults:
        print(fault)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel")
    parser.add_argument("--workload", help="of scratchcuda compare")
    parser.add_argument("-k", metavar="EXPRESSION", help="which of the kernel's tests, as pytest takes it")
    arguments, options = parser.parse_known_args()
    if arguments.kernel not in KERNELS:
        sys.exit(f"KERNEL is {arguments.kernel!r}, expected one of {', '.join(KERNELS)}")
    if arguments.workload and arguments.workload not in NAMES:
        sys.exit(f"WORKLOAD is {arguments.workload!r}, expected one of {', '.join(NAMES)}")
    os.chdir(ROOT)
    os.environ["SCRATCHCUDA_BACKEND"] = "emulator"
    os.environ.setdefault("SCRATCHCUDA_EMULATOR", "")
    which = f"{arguments.kernel} and ({arguments.k})" if arguments.k else arguments.kernel
    status = tested(which, options)
    if status > pytest.ExitCode.TESTS_FAILED:  # it does not compile, say
        return status
    workloads = [arguments.workload] if arguments.workload else TRAININGS.get(arguments.kernel, ["mlp"])
    train = [sys.executable, "-c", TRAIN, "compare", *workloads, "--epochs", "8", "--repeats", "1"]
    trained = subprocess.run(train, check=False).returncode
    if trained < 0:
        print(f"The training died of {signal.Signals(-trained).name}.")
    if arguments.kernel in ("sgd", "adam"):  # SGD's update is in the product that is the gradient
        print(f"No training here runs {arguments.kernel}; its tests tell.")
    if status:
        print(f"The tests of {arguments.kernel} fail, as said above.")
    return int(bool(trained or status))


if __name__ == "__main__":
    sys.exit(main())
