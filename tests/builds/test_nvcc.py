"""What nvcc makes of the kernels, by tools/kernel_report.py. It takes nvcc, but no GPU."""

import re

import kernel_report as report
import pytest

pytestmark = [
    pytest.mark.slow,  # nvcc takes a minute and a half of processor time
    pytest.mark.backends("tensor"),  # once: no backend has a part in it
    pytest.mark.skipif(not report.toolkit(), reason="there is no nvcc"),
    pytest.mark.parametrize("arch", report.ARCHITECTURES),
]


def test_registers_suffice(arch):
    assert report.faults(arch) == []
    assert all(kernel.registers <= 255 for kernel in report.resources(arch))


@pytest.mark.skipif(not report.toolkit("nvdisasm"), reason="there is no nvdisasm: pip install nvidia-cuda-nvdisasm")
def test_instructions(arch):
    packed = [report.KERNEL["LDG.128"], report.KERNEL["STG.128"]]
    wide = dict.fromkeys(("elementwise", "loss_elements", "sgd_update", "adam_update"), packed) | {
        "matmul": [r" LDGSTS\.\S*128"]
    }
    for kernel, body in report.sass(arch).items():
        assert all(report.count(wide.get(kernel.split()[0], []), body)), kernel
        if re.match(report.PRODUCTS, kernel):
            inner, _ = report.loops(body)
            fma, instructions = report.count([report.FMA, ";"], inner)
            # The least is 72 %, of double medium gradient: 16 bytes are but two values, and there are columns to add.
            assert fma >= 0.7 * instructions, kernel
            assert report.count(report.INNER.values(), inner)[1:] == [0, 0], kernel  # loads of less than 16 bytes
