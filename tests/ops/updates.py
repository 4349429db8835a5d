"""What the tests of updates of lists of tensors share."""

import pytest
import torch
from cases import DTYPES, Refused, rand
from kernels import BETWEEN, all_bytes, kernel, laid_out, launched, same_memory
from oracle import same

from scratchcuda.ops import _backend

SHAPES = [(), (0,), (1,), (7,), (3, 5), (1023,), (1024,), (2, 1025), (0, 4)]


def listed(layout):
    """Parameters of many sizes and all dtypes."""
    return [like(rand(*shape, dtype=dtype), layout) for shape in SHAPES for dtype in DTYPES]


def like(p, layout):
    """Another tensor of this shape and dtype, in a layout of its own."""
    return laid_out(rand(*p.shape, dtype=p.dtype), layout) if p.dim() else rand(dtype=p.dtype)


def gradients(params):
    """In the other order of dimensions."""
    return [rand(*p.shape[::-1], dtype=p.dtype).permute(list(range(p.dim()))[::-1]) for p in params]


def numbered(count):
    """So many parameters."""
    return [rand(i % 5 * 300 + 1, dtype=DTYPES[i % 4]) for i in range(count)]


def update(name, written, *args):
    """One step by the kernel, which leaves all memory alone that is not of these lists' elements."""
    memory = [[same_memory(tensor) for tensor in tensors] for tensors in written]
    kernel(name, *args)
    for tensors, copies in zip(written, memory, strict=True):
        for tensor, copy in zip(tensors, copies, strict=True):
            copy.copy_(tensor)
            same(all_bytes(tensor), all_bytes(copy), f"{name}, {BETWEEN}")


def launches(name, *args):
    """How many, where that can be seen; None elsewhere."""
    return len(launched(name, *args)) if _backend.current == "emulator" else None


def check_turns(name, args, written, rates, step):
    """With a table of rates: the same as with the numbers of the row; nothing, where there is none.

    Args:
        args: lists -> arguments of the op without rates and turn, whatever number its own step has.
        written: the lists that it writes, of its lists; the others are read.
        rates: the table (steps, numbers).
        step: (lists, row) -> the arguments of the step with the numbers of this row.
    """
    strided = torch.stack([rates, rates], -1)[..., 0]
    for turn in range(-1, len(rates) + 2):
        ours, theirs = ([[t.clone() for t in tensors] for tensors in written] for _ in range(2))
        kernel(name, *args(ours), strided, torch.tensor(turn))
        if 1 <= turn <= len(rates):
            kernel(name, *step(theirs, turn - 1))
        same(ours, theirs, f"{name}, turn {turn}")


def refused_rates(call, columns):
    """Refusals of the numbers of steps: ``call(t, rates, turn)`` makes the arguments."""
    rates, turn = torch.zeros(2, columns, dtype=torch.float64), torch.tensor(1)
    expected = rf"expected \(steps, {columns}\), at least one step"
    return [
        Refused(lambda t: call(t, rates.float(), turn), TypeError, "rates has dtype torch.float32, expected torch.fl"),
        Refused(lambda t: call(t, rates[0], turn), ValueError, rf"rates has shape \({columns},\), {expected}"),
        Refused(lambda t: call(t, rates[:, :0], turn), ValueError, rf"rates has shape \(2, 0\), {expected}"),
        Refused(lambda t: call(t, rates[:0], turn), ValueError, rf"rates has shape \(0, {columns}\), {expected}"),
        Refused(lambda t: call(t, rates, turn.int()), TypeError, "turn has dtype torch.int32, expected torch.int64"),
        Refused(lambda t: call(t, rates, turn.view(1)), ValueError, r"turn has shape \(1,\), expected \(\)"),
        Refused(lambda t: call(t, rates, None), TypeError, "turn is NoneType", "turn is None, expected a tensor"),
        Refused(lambda t: call(t, None, turn), TypeError, "rates is NoneType", "rates is None, expected a tensor"),
        Refused(
            lambda t: call(t, t.w.view(-1)[: columns * 2].view(2, columns), turn.to(t.w.device)),
            ValueError,
            "rates shares memory with|params shares memory with rates",
            "shares memory with",
        ),
    ]


def not_merging(name, args):
    """More than 16 dimensions that do not merge are an error, before anything is written."""
    many = torch.zeros([2] * 20).permute(*range(0, 20, 2), *range(1, 20, 2))
    one, other = rand(2), many.clone(memory_format=torch.contiguous_format)
    with pytest.raises(RuntimeError, match="more than 16 dimensions that cannot be merged"):
        kernel(name, *args([one, other], [one.clone(), many]))


def odd_orders():
    """Parameters and gradients that keep four dimensions."""
    orders = [(2, 0, 1, 3), (1, 3, 2, 0), (0, 1, 2, 3), (3, 2, 1, 0)]
    return [rand(3, 3, 3, 3).permute(o) for o in orders], [rand(3, 3, 1, 3).expand(3, 3, 3, 3) for _ in orders]
