"""Each instruction of the kernels, bit by bit: the emulator against its definition, and a GPU against the emulator.

A function per kernel of instructions.cu gives what the kernel reads, and what it has to write by the PTX manual or by
torch. Both are integers, of as many bits as the kernel's elements.
"""

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch
from oracle import same

from scratchcuda import _build
from scratchcuda._build import toolchain

SOURCE = Path(__file__).with_name("instructions.cu")
NAMES = re.findall(r"CASE\((\w.*)\)", SOURCE.read_text())
DTYPES = {"__half": torch.float16, "__nv_bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64}
INTEGERS = {"char": torch.int8, "__half": torch.int16, "__nv_bfloat16": torch.int16}
INTEGERS |= {"float": torch.int32, "double": torch.int64}


def patterns(kind, *shape):
    """Any bits: subnormals, infinities and NaN among them."""
    limits = torch.iinfo(INTEGERS[kind])
    return torch.randint(limits.min, limits.max, shape, dtype=INTEGERS[kind])


def copy(kind, count):
    x = patterns(kind, int(count) + 1, 2, int(count))
    return x, torch.stack([x[:, 1].tril(-1), x[:, 1]], 1)  # row r begins with r elements, then zeros


def groups(_):
    x = patterns("float", 10, 2, 64)
    expected = torch.zeros_like(x)
    expected[1::3, 0] = x[1::3, 0].flip(-1)
    expected[2::3] = x[2::3].flip(-1, -2)
    return x, expected


def pieces():
    x = torch.randint(128, (5000,), dtype=torch.int32)
    return x, torch.cat([torch.cat([*[x[:count]] * 3, x.new_zeros(1)]) for count in (5000, 714, 102, 14, 2)])


def packs(kind):
    x = patterns(kind, 100, 16 // INTEGERS[kind].itemsize)
    return x, x.flip(-1)


def widened(kind):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    floats = x.view(DTYPES[kind]).float()
    expected = floats.view(torch.int32)
    if kind == "__half":  # its NaN is the GPU's only one, that of bfloat16 as it was
        expected[floats.isnan()] = 0x7FFFFFFF
    return x, expected


def narrowed(kind):
    """All finite values, their midpoints, the floats next to these, and any others."""
    limits = torch.finfo(DTYPES[kind])
    values = torch.arange(2**15, dtype=torch.int16).view(DTYPES[kind]).double()
    values = values[values.isfinite()]
    beyond = limits.max * 2 / (2 - limits.eps)  # the value after the last, were there one more exponent
    middle = ((values + torch.cat([values[1:], values.new_tensor([beyond])])) / 2).float()
    below, above = (middle.nextafter(torch.tensor(limit)) for limit in (0.0, torch.inf))
    tests = torch.cat([values.float(), below, middle, above])
    special = torch.tensor([0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7F7FFFFF, 0x800000, 0x7FFFFF, 1])
    x = torch.cat([tests, -tests, special.int().view(torch.float32), patterns("float", 10000).view(torch.float32)])
    expected = x.to(DTYPES[kind]).view(torch.int16)
    expected[x.isnan()] = 0x7FFF
    return x.view(torch.int32), expected


def limits(kind):
    expected = torch.tensor([torch.inf, torch.finfo(DTYPES[kind]).min], dtype=DTYPES[kind])
    return patterns(kind, 1), expected.view(INTEGERS[kind])


def shuffles(kind):
    x, lane = patterns(kind, 2, 32), torch.arange(32)
    width, step = 2 ** torch.arange(6).view(-1, 1, 1), torch.arange(40).view(-1, 1) % 32
    first = lane - lane % width
    ways = [
        first + step % width,
        torch.where(lane - step >= first, lane - step, lane),
        torch.where(lane + step < first + width, lane + step, lane),
        torch.where(lane ^ step < first + width, lane ^ step, lane),
    ]
    return x, x[:, torch.stack(ways, 2)].movedim(0, 3)


def votes():
    x, lane = patterns("float", 2, 32), torch.arange(32)
    x = (x | 1) & ~2  # one bit on which all agree, and one that nobody has
    bits = (x.long().unsqueeze(1) >> lane.view(-1, 1) & 1) << lane  # warp, bit, lane
    rounds = []
    for apart in 2 ** torch.arange(6):
        together = (lane % apart == lane.view(-1, 1) % apart).long()
        ballot = bits @ together
        rounds.append(torch.stack([ballot, ballot != 0, ballot == together @ (1 << lane)], 2))
    return x, torch.stack(rounds).movedim(1, 3).int()


def reduced(kind, name):
    combine = {"Add": torch.add, "Maximum": torch.maximum}[name]
    x, lane = torch.randn(2, 32, dtype=DTYPES[kind]), torch.arange(32)
    warps = x
    for step in (16, 8, 4, 2, 1):
        warps = combine(warps, warps[:, lane ^ step])
    block = combine(warps[0], warps[1])
    return x.view(INTEGERS[kind]), torch.stack([block, block, *warps]).view(INTEGERS[kind])


KERNELS = {f.__name__: f for f in (copy, groups, pieces, packs, widened, narrowed, limits, shuffles, votes, reduced)}


@pytest.fixture(params=NAMES)
def case(request):
    """On the CPU, also where tests make their tensors on a GPU."""
    kernel, *arguments = re.findall(r"\w+", request.param)
    with torch.device("cpu"):
        return request.param, *KERNELS[kernel](*arguments)


@pytest.fixture(scope="module")
def emulator():
    return ctypes.CDLL(_build.emulator.build(extra=[SOURCE]))


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    """What nvcc makes of it, for the GPU, or without one for an old and a new architecture."""
    nvcc = next((kit.nvcc for kit in toolchain.toolkits() if not kit.fault), None)
    if nvcc is None:
        pytest.skip("there is no nvcc")
    library = tmp_path_factory.mktemp("cuda") / "instructions.so"
    available = torch.cuda.is_available()
    architectures = ["{}{}".format(*torch.cuda.get_device_capability())] if available else ["75", "90"]
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    flags = ["-std=c++17", "-shared", "-Xcompiler", "-fPIC", *codes]
    subprocess.run([nvcc, *flags, "-o", library, SOURCE], check=True)
    return ctypes.CDLL(library)


def run(library, name, x, expected):
    """What the kernel makes of `x`, on the device of `x`."""
    out = torch.zeros(expected.shape, dtype=expected.dtype, device=x.device)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, out))
    assert library.run_instruction(name.encode(), *pointers, x.numel()) == 0
    return out


@pytest.mark.backends("emulator")
def test_the_emulator_is_as_defined(emulator, case):
    name, x, expected = case
    same(run(emulator, name, x, expected), expected)


@pytest.mark.backends("kernels")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_as_the_emulator(cuda, emulator, case):
    name, x, expected = case
    if "char" in name and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("cp.async came with sm_80")
    computed = run(cuda, name, x.cuda(), expected)
    torch.cuda.synchronize()
    same(computed.cpu(), run(emulator, name, x, expected))


@pytest.mark.backends("tensor")  # once: no backend has a part in it
def test_nvcc_compiles_it(cuda):
    assert cuda.run_instruction(b"no instruction", None, None, 0) == 1  # cudaErrorInvalidValue
