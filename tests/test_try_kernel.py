"""``make try``: what it knows, what it says of a fault, and that it begins no test without the emulator."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cases
import numpy as np
import pytest
import torch
import try_kernel
from oracle import assert_right, assert_within, same

pytestmark = pytest.mark.backends("emulator")


def test_kernels_and_workloads_are_known(monkeypatch):
    folder = Path(cases.__file__).parent
    assert all((folder / f"test_{kernel}.py").exists() for kernel in try_kernel.KERNELS)
    monkeypatch.setattr(try_kernel, "Process", lambda **how: 1 / 0)  # before any test
    monkeypatch.setattr(sys, "argv", ["try_kernel.py", "relu"])
    with pytest.raises(SystemExit, match=r"^KERNEL is 'relu', expected one of activations, .*, softmax$"):
        try_kernel.main()
    monkeypatch.setattr(sys, "argv", ["try_kernel.py", "softmax", "--workload", "cifar"])
    with pytest.raises(SystemExit, match=r"^WORKLOAD is 'cifar', expected one of slr, .*, mlp-4096$"):
        try_kernel.main()


def test_of_each_op_and_dtype_one_fault_is_shown():
    faults = try_kernel.Faults(Mock())
    for dtype in (torch.float64, torch.float16):
        for size in (3, 4):
            delta, a = torch.ones(2, size, dtype=dtype), torch.full((2, size), 0.5, dtype=dtype)
            wrong = 1 - a**2
            wrong[1, 2] = 1.5
            with pytest.raises(AssertionError) as caught:
                assert_right("tanh_backward", (delta, a), (wrong,))
            crash = SimpleNamespace(message=f"AssertionError: {caught.value}\nassert ...")
            report = SimpleNamespace(failed=True, longrepr=SimpleNamespace(reprcrash=crash), nodeid=f"a.py::t[{size}]")
            faults.pytest_runtest_logreport(report)
    died = SimpleNamespace(failed=True, longrepr="worker 'gw0' crashed", longreprtext="worker 'gw0' crashed")
    faults.pytest_runtest_logreport(SimpleNamespace(**vars(died), nodeid="a.py::t[3]"))
    double, half, other = faults.found.values()
    assert double.splitlines()[0] == "tanh_backward((2, 3), (2, 3)) in float64"
    assert "    worst element [1, 2] is 1.5, expected 0.75, 7.5e-01 off; by norm" in double
    assert " in float16" in half
    assert "crashed" in other


def test_what_has_to_be_the_same_is_told_by_element():
    ours = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    with pytest.raises(
        AssertionError, match=r"^relu\[0\] \(2, 2\) in float32: element \[1, 0\] is 2, expected 9, .*; 1 of 4"
    ):
        same([ours], [torch.tensor([[0.0, 1.0], [9.0, 3.0]])], "relu")
    with pytest.raises(AssertionError, match=r"^sgd_update_ \(2, 2\) in float32: element \[1, 1\] is 3, expected 2.5"):
        assert_within(0.1, ours, np.array([[0.0, 1.0], [2.0, 2.5]]), "sgd_update_")


def die(kernel, options, told):
    told.send(("test_tanh", ["tanh is wrong"]))
    os.kill(os.getpid(), signal.SIGKILL)


def stay(kernel, options, told):
    told.send(("test_tanh", ["tanh is wrong"]))
    time.sleep(60)


def test_a_kernel_may_die_and_need_not_end(monkeypatch, capsys):
    monkeypatch.setattr(try_kernel, "run_tests", die)
    assert try_kernel.tested("activations", []) == -signal.SIGKILL
    assert capsys.readouterr().out == "tanh is wrong\n\ntest_tanh died of SIGKILL\n"
    monkeypatch.setattr(try_kernel, "run_tests", stay)
    monkeypatch.setattr(try_kernel, "MOST_SECONDS", 0.1)
    with pytest.raises(SystemExit, match=r"^tanh is wrong\n\ntest_tanh has run for 0.1 seconds: a kernel does not end"):
        try_kernel.tested("activations", [])


def test_without_a_compiler_there_is_one_message(tmp_path):
    variables = os.environ | {"CXX": "no-such-compiler", "SCRATCHCUDA_CACHE": str(tmp_path)}
    command = [sys.executable, try_kernel.__file__, "sgd"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (pytest.ExitCode.USAGE_ERROR, "")
    assert done.stderr.count("the host compiler no-such-compiler does not run") == 1
    assert len(done.stderr.split("\n")) < 5
