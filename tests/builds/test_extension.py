"""The CUDA extension, built beside a CUDA torch (make cuda-build). It takes no GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Refused, cases, tensors
from oracle import same
from test_every_op import REFUSED, refuses

import scratchcuda
from scratchcuda._build import extension, library
from scratchcuda.ops import _backend, _registry
from scratchcuda.ops._registry import twins

pytestmark = [
    pytest.mark.backends("tensor"),
    pytest.mark.skipif(
        bool(extension.misfit(extension.installed())), reason="the package has no CUDA kernels that fit"
    ),
]


@pytest.fixture
def built():
    assert _backend.kernels_missing() == ""
    from scratchcuda import _C

    return _C


def test_build_facts(built):
    facts = built.build_facts()
    assert scratchcuda._C is built
    assert facts.items() <= library.facts_of(Path(built.__file__)).items()
    assert facts["version"] == scratchcuda.__version__
    assert facts["cuda"].split(".")[0] == torch.version.cuda.split(".")[0]


CUOBJDUMP = next((tool for entry in sys.path for tool in Path(entry).glob("nvidia/*/bin/cuobjdump")), None)


@pytest.mark.skipif(not CUOBJDUMP, reason="there is no cuobjdump: pip install nvidia-cuda-cuobjdump")
def test_architectures_are_those_reported(built):
    found = {
        kind: set(re.findall(r"\.sm_(\d+)\.", subprocess.check_output([CUOBJDUMP, option, built.__file__], text=True)))
        for kind, option in (("binary", "--list-elf"), ("ptx", "--list-ptx"))
    }
    reported = built.build_facts()["architectures"]
    assert found["binary"] == {arch.removeprefix("sm_") for arch in reported if arch.startswith("sm_")}
    assert found["ptx"] == {arch.removeprefix("compute_") for arch in reported if arch.startswith("compute_")}


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", _registry.OPS)
def test_every_op_has_a_cuda_kernel_and_keeps_its_schema_and_twin(name):
    op = getattr(torch.ops.scratchcuda, name).default
    written = torch._C.parse_schema(f"scratchcuda::{name}{_registry.OPS[name].schema}")  # whose text has 1. for 1.0
    assert str(op._schema) == str(written)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"scratchcuda::{name}", "CUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"scratchcuda::{name}", "CPU")
    t = tensors()
    same(torch.ops.scratchcuda.dense(t.x, t.w, t.b, "relu"), twins.dense(t.x, t.w, t.b, "relu"))


@pytest.mark.parametrize(("name", "refused"), [pair for pair in REFUSED if pair[1].raw is not None])
def test_raw_ops_refuse(name, refused):
    refuses(torch.ops.scratchcuda, "CUDA", name, refused)


@pytest.mark.parametrize("name", ["relu", "softmax_backward", "mse", "cross_entropy", "sgd_update_", "dense_update_"])
def test_cpu_tensors_are_refused(name):
    refused = Refused(lambda t: cases()[name].arguments(4), None, "is on device cpu, expected cuda")
    refuses(torch.ops.scratchcuda, "CUDA", name, refused)


def test_the_argument_on_another_device_is_named():
    refused = Refused(lambda t: (t.x, t.w, t.b, "none"), None, "x is on device cpu, exp")
    refuses(torch.ops.scratchcuda, "CUDA", "dense", refused)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_resources_are_the_drivers_to_tell(built):
    with pytest.raises(RuntimeError, match="cudaError"):
        built.kernel_resources()
