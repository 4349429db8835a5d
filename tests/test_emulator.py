"""What the emulator catches and what it emulates: kernels broken on purpose, limits, conversions, its build."""

import ctypes
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scratchcuda import _build
from scratchcuda.ops import _emulator

pytestmark = pytest.mark.backends("emulator")
FAULTS = Path(__file__).with_name("faults.cu")
RUN = """
import ctypes, sys
out = (ctypes.c_float * 256)()
print(ctypes.CDLL(sys.argv[1]).run_fault(sys.argv[2].encode(), out, 256, 0))
"""


@pytest.fixture(scope="module")
def library():
    return _emulator.controls(_build.emulator.build(extra=[FAULTS]))


def run(library, name, cooperative=False):
    """The error's name, its message, and the first 256 floats that the kernel wrote."""
    out = (ctypes.c_float * 256)()
    error = library.run_fault(name.encode(), out, 256, int(cooperative))
    message = library.cudaGetErrorString(0).decode() if error else ""
    return library.cudaGetErrorName(error).decode(), message, list(out)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("shared_out_of_bounds", "IllegalAddress", "wrote outside its shared memory, after its piece 0"),
        ("more_shared_than_launched", "IllegalAddress", "takes 4000 bytes of shared memory in 1 pieces, of 1024"),
        ("misaligned_access", "MisalignedAddress", "faults.cu:[0-9]+: misaligned access"),
        ("misaligned_copy", "MisalignedAddress", "copies 16 bytes that are not aligned"),
        ("copy_to_global", "IllegalAddress", "memory that is not shared"),
        ("barrier_after_return", "LaunchFailure", "waits at .*faults.cu:[0-9]+, which not all threads reach"),
        ("barrier_in_a_branch", "LaunchFailure", "is at the barrier of .* while thread [0-9]+ is at that of"),
        ("grid_barrier", "LaunchFailure", "a launch that is not cooperative"),
        ("shuffle_from_an_inactive_lane", "LaunchFailure", "reads lane [0-9]+, which is not active"),
        ("shuffle_outside_its_mask", "LaunchFailure", "is not in its own mask"),
        ("shuffle_without_all", "LaunchFailure", "which not all threads reach"),
        ("vote_without_all", "LaunchFailure", "which not all threads reach"),
        ("vote_meets_shuffle", "LaunchFailure", "while lanes of its warp wait for it at"),
    ],
)
def test_faults_are_errors(library, name, error, message):
    found, text, _ = run(library, name)
    assert found == f"cudaError{error}"
    assert re.search(message, text), text
    assert run(library, "copy_awaited")[0] == "cudaSuccess", "the emulator serves on after an error"


@pytest.mark.parametrize("name", ["uninitialised_shared", "shared_after_release", "copy_not_awaited"])
def test_what_is_not_there_yet_is_nan(library, name):
    assert all(map(math.isnan, run(library, name)[2][:32]))


@pytest.mark.parametrize("name", ["race_between_blocks", "race_on_one_element"])
def test_orders_are_shuffled(library, name):
    """A result that depends on the order of blocks or threads differs from launch to launch, and repeats for a seed."""

    def last(seed):
        library.emulator_seed(seed)
        return [run(library, name)[2][0] for _ in range(10)]

    assert len(set(last(0))) > 1
    assert last(1) == last(1) != last(2)


@pytest.mark.parametrize(
    ("variant", "name", "report"),
    [
        ("address", "global_out_of_bounds", "heap-buffer-overflow"),
        ("address", "shared_out_of_bounds", "use-after-poison"),
        ("address", "undefined_arithmetic", "signed integer overflow"),
        ("address", "misaligned_access", "misaligned address"),
        ("address", "no_race_within_a_block", None),
        ("thread", "race_within_a_block", "data race"),
        ("thread", "race_through_a_shuffle", "data race"),
        ("thread", "race_between_blocks", "data race"),
        ("thread", "race_between_two_syncwarps", "data race"),
        ("thread", "race_with_a_copy", "data race"),
        ("thread", "no_race_within_a_block", None),
        ("thread", "no_race_after_syncwarp", None),
        ("thread", "copy_awaited", None),
        ("thread", "atomics", None),
    ],
)
def test_sanitizers_see_what_the_emulator_cannot(variant, name, report):
    path = _build.emulator.build([variant], [FAULTS])
    done = subprocess.run(
        [sys.executable, "-c", RUN, path, name],
        env=os.environ | _build.emulator.sanitizer_environment(variant),
        capture_output=True,
        text=True,
        check=False,
    )
    if report is None:
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    else:
        assert done.returncode != 0
        assert report in done.stderr
        assert "faults.cu" in done.stderr


def test_shuffles_votes_and_partial_warps(library):
    values = torch.tensor(run(library, "shuffles")[2]).view(32, 8)
    lane = torch.arange(32)
    expected = [
        torch.full((32,), 3),
        lane // 8 * 8 + 5,
        torch.where(lane < 3, lane, lane - 3),
        torch.where(lane % 16 >= 13, lane, lane + 3),
        lane ^ 5,
        torch.full((32,), sum(1 << bit for bit in range(0, 32, 3)) % 1024),
        torch.ones(32),
        torch.where(lane < 16, lane ^ 8, 0),
    ]
    assert values.tolist() == torch.stack(expected, 1).tolist()


def test_atomics_grid_barriers_and_partial_copies(library):
    found = torch.tensor(run(library, "atomics")[2][:5])
    assert (found[[0, 4]].tolist(), found[1:4].view(torch.int32).tolist()) == ([64, 9], [31, -31, 7])
    assert run(library, "grid_barrier", cooperative=True)[2][:4] == [4] * 4
    assert run(library, "too_many_to_meet", cooperative=True)[0] == "cudaErrorCooperativeLaunchTooLarge"
    assert run(library, "copy_awaited")[2][64:96] == [1, 2, 3, 0] * 8


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "error"),
    [
        ((1, 1, 1), (1024, 1, 1), 163 * 1024, "Success"),
        ((1, 1, 1), (1025, 1, 1), 0, "InvalidConfiguration"),
        ((1, 1, 1), (16, 1, 65), 0, "InvalidConfiguration"),
        ((1, 1, 1), (0, 1, 1), 0, "InvalidConfiguration"),
        ((0, 1, 1), (32, 1, 1), 0, "InvalidConfiguration"),
        ((1, 65536, 1), (32, 1, 1), 0, "InvalidConfiguration"),
        ((1, 1, 65536), (32, 1, 1), 0, "InvalidConfiguration"),
        ((1, 1, 1), (32, 1, 1), 163 * 1024 + 1, "InvalidValue"),
    ],
)
def test_limits_are_those_of_cuda(library, grid, block, shared_bytes, error):
    found = library.run_shape(*grid, *block, ctypes.c_size_t(shared_bytes), None)
    assert library.cudaGetErrorName(found).decode() == f"cudaError{error}".replace("cudaErrorSuccess", "cudaSuccess")


def test_shared_memory_beyond_48_kib_has_to_be_asked_for(library):
    assert library.run_unasked(49 * 1024) == 1  # cudaErrorInvalidValue
    assert "at most 49152 unless asked for" in library.cudaGetErrorString(0).decode()


def test_launches_are_recorded(library):
    library.emulator_record(1)
    library.cudaSetDevice(1)
    library.run_shape(2, 3, 1, 64, 2, 1, ctypes.c_size_t(48), ctypes.c_void_p(0x1234))
    library.cudaSetDevice(0)
    assert library.emulator_records().decode() == "1 0x1234 2,3,1 64,2,1 48 nothing\n"
    library.emulator_record(0)
