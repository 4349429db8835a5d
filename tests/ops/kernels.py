"""The kernels themselves, on the emulator and on a GPU, and what they are given."""

import functools
import math
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from cases import DTYPES, rand
from oracle import assert_right, same
from torch.utils._pytree import tree_leaves, tree_map_only

from scratchcuda.ops import _backend, _emulator

LAYOUTS = ["rows", "columns", "strided", "unaligned", "padded"]
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e4, -1e4, 6e-8, -1e-45, 5e-324, 80.0, -80.0]
MATMUL = (Path(__file__).parents[2] / "csrc/kernels/matmul.cuh").read_text()
#: Rows, columns and depth of each tile of products.
TILES = {
    name.lower(): tuple(map(int, sizes.split(", ")[:3]))
    for name, sizes in re.findall(r"using (\w+)Tile = TileShape<(.*?)>", MATMUL)
}
BETWEEN = "memory between the elements"


def of_kernels(test):
    """A test of kernels, as ``-m kernels`` selects it; a mark beneath this one may name fewer backends."""
    for mark in (pytest.mark.kernels, pytest.mark.backends("emulator", "kernels")):
        test = mark(test)
    return pytest.mark.usefixtures("_variant", "_on_the_cpu", "_poisoned")(test)


def by_dtype(test):
    return pytest.mark.parametrize("dtype", DTYPES, ids=str)(test)


def kernel(name, *args, tile="automatic"):
    """The op itself, its products in tiles of this kind."""
    if _backend.current == "kernels":
        from scratchcuda import _C

        op, set_tile = functools.partial(on_the_gpu, name), _C.set_tile
    else:
        emulator = _emulator.current()
        op, set_tile = getattr(emulator.ops, name), emulator.controls.scratchcuda_set_tile
    set_tile(_emulator.TILES[tile])
    try:
        return op(*args)
    finally:
        set_tile(_emulator.TILES["automatic"])


def on_the_gpu(name, *args):
    """The op on copies of its arguments there. Results come back, and of an op in place all memory of its arguments."""
    copies = tree_map_only(torch.Tensor, lambda tensor: same_memory(tensor, "cuda"), args)
    found = getattr(torch.ops.scratchcuda, name)(*copies)
    if name.endswith("_"):
        for value, copy in zip(tree_leaves(args), tree_leaves(copies), strict=True):
            if isinstance(value, torch.Tensor):
                all_bytes(value).copy_(all_bytes(copy))
    return tree_map_only(torch.Tensor, torch.Tensor.cpu, found)


def laid_out(values, layout):
    """The same values in other memory."""
    if layout == "columns":
        return values.mT.contiguous().mT if values.dim() > 1 else values
    if layout == "strided":
        return torch.stack([values, values.new_full((), math.nan).expand_as(values)], -1)[..., 0]
    if layout == "unaligned":
        return torch.cat([values.new_full((1,), math.nan), values.flatten()])[1:].view(values.shape)
    if layout == "padded":
        return torch.cat([values, values.new_full((*values.shape[:-1], 3), math.nan)], -1)[..., : values.shape[-1]]
    return values


def dense_args(m, n_in, n_out, dtype, layout="rows", activation="tanh"):
    """Arguments of the four dense ops, every operand in this layout."""

    def tensor(*shape):
        return laid_out(rand(*shape, dtype=dtype), layout)

    x, delta, w, b = tensor(m, n_in), tensor(m, n_out), tensor(n_in, n_out), tensor(n_out)
    return {
        "dense": (x, w, b, activation),
        "dense_backward_input": (delta, w),
        "dense_backward_weights": (delta, x),
        "dense_update_": (delta, x, w, b, 0.1, 0.01),
    }


def any_tensor(draw, *shape, dtype):
    """In any layout, its leading dimensions in any order, some expanded."""
    values = laid_out(rand(*shape, dtype=dtype), draw(st.sampled_from(LAYOUTS)))
    order = draw(st.permutations(range(len(shape) - 1)))
    values = values.permute(*order, -1).contiguous().permute(*[order.index(d) for d in range(len(order))], -1)
    if len(shape) > 1 and draw(st.booleans()):
        values = values[:1].expand(shape)
    return values


def any_leading(draw):
    """Leading dimensions, in any number. The values are drawn here, too."""
    torch.manual_seed(draw(st.integers(0, 99)))
    return draw(st.lists(st.integers(1, 4), max_size=4))


def far(rows, columns):
    """Elements more than 2^31 apart; only the pages that are touched take memory."""
    torch.use_deterministic_algorithms(False)
    stride = 2**31 // (rows - 1) + 1
    return torch.empty(stride * (rows - 1) + columns, dtype=torch.float16).as_strided((rows, columns), (stride, 1))


def not_mergeable():
    """More than 16 dimensions that do not merge."""
    return torch.zeros([2] * 17).permute(*range(0, 17, 2), *range(1, 17, 2))


def results(function, name, args, **options):
    """Of an op in place, what became of its arguments."""
    if not name.endswith("_"):
        found = function(*args, **options)
        return found if isinstance(found, tuple) else (found,)
    w, b = map(same_memory, args[2:4])
    function(*args[:2], w, b, *args[4:], **options)
    for after, before in ((w, same_memory(args[2])), (b, same_memory(args[3]))):
        before.copy_(after)
        same(all_bytes(after), all_bytes(before), f"{name}, {BETWEEN}")
    return w, b


def all_bytes(tensor):
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def same_memory(tensor, device="cpu"):
    """A copy of a tensor with all the memory that it lies in, so that its strides and alignment are the same."""
    storage = all_bytes(tensor).to(device, copy=True).untyped_storage()
    like = torch.empty(0, dtype=tensor.dtype, device=device)
    return like.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def check(name, args, **options):
    assert_right(name, args, results(functools.partial(kernel, name), name, args, **options))


def assert_same_bits(calls):
    """Of these calls, for any order of threads and blocks."""
    for name, args in calls:
        found = []
        for seed in range(3):
            _emulator.seed(seed)
            found.append(results(functools.partial(kernel, name), name, args))
        for other in found[1:]:
            same(found[0], other, name)


def launched(name, *args):
    _emulator.record(True)
    kernel(name, *args)
    launches = _emulator.launches()
    _emulator.record(False)
    return launches


def is_nan(found, what):
    same(found, torch.full_like(found, math.nan), what, equal_nan=True)
