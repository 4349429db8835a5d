"""Every kernel, on the emulator and on a GPU, against its formula (oracle.py).

The name of each test names the kernels, files of csrc/kernels, that it is about: ``make try KERNEL=...`` selects by it.
"""

import functools
import math
import os
import re
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from oracle import assert_right, assert_within, formula, narrowed, same, shown, sum_type, wide
from torch.utils._pytree import tree_leaves, tree_map_only

from scratchcuda.ops import _backend, _emulator
from scratchcuda.ops._registry import twins

pytestmark = pytest.mark.backends("emulator", "kernels")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ELEMENTWISE = ["relu", "sigmoid", "tanh"]
MATMUL = (Path(__file__).parent.parent / "csrc/kernels/matmul.cuh").read_text()
#: rows, columns and depth of each tile
TILES = {
    name.lower(): tuple(map(int, sizes.split(", ")[:3]))
    for name, sizes in re.findall(r"using (\w+)Tile = TileShape<(.*?)>", MATMUL)
}


#: Builds of the emulator: as sm_80; and as sm_75, without asynchronous copies, with a * b + c rounded once, as by nvcc.
#: These two go together, as neither has a part in the other: one changes how operands come, the other how they round.
VARIANTS = [os.environ["SCRATCHCUDA_EMULATOR"]] if "SCRATCHCUDA_EMULATOR" in os.environ else ["", "sm_75,fma"]


@functools.cache
def built(variant):
    return _emulator.load(name for name in variant.split(",") if name)


@pytest.fixture(autouse=True, params=VARIANTS)
def _variant(request, monkeypatch):
    monkeypatch.setattr(_emulator, "_usual", lambda: built(request.param))


@pytest.fixture(autouse=True)
def _on_the_cpu():
    """There the formulas are computed, on a GPU the kernels alone."""
    with torch.device("cpu"):
        yield


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


@pytest.fixture(autouse=True)
def _poisoned():
    """Memory that torch hands out is full of NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def rand(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


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


LAYOUTS = ["rows", "columns", "strided", "unaligned", "padded"]


BETWEEN = "memory between the elements"


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


def is_nan(found, what):
    same(found, torch.full_like(found, math.nan), what, equal_nan=True)


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


def by_dtype(function):
    return pytest.mark.parametrize("dtype", DTYPES, ids=str)(function)


@by_dtype
@pytest.mark.parametrize("tile", TILES)
def test_dense_matmul_at_the_edges_of_each_tile(tile, dtype):
    """In every product, each size is 0, 1, one below, at and above the tile's, and k is more than the stages hold."""
    rows, columns, depth = TILES[tile]
    inner = [0, 1, depth - 1, depth, depth + 1, 5 * depth + 3]
    outer = [
        (0, 1),
        (1, 0),
        (1, 1),
        (rows - 1, columns + 1),
        (rows, columns),
        (rows + 1, columns - 1),
        (3, 2 * columns),
    ]
    for i in range(len(inner) * len(outer)):
        (m, n), k = outer[i % len(outer)], inner[i % len(inner)]  # 6 and 7 have no common factor: every pair
        args = dense_args(m, k, n, dtype)
        check("dense", args["dense"], tile=tile)
        check("dense_backward_input", dense_args(m, n, k, dtype)["dense_backward_input"], tile=tile)
        for name in ("dense_backward_weights", "dense_update_"):
            check(name, dense_args(k, m, n, dtype)[name], tile=tile)


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tile", TILES)
def test_dense_matmul_layouts(tile, layout, dtype):
    for m, n_in, n_out in ((40, 24, 16), (33, 19, 35)):
        for name, args in dense_args(m, n_in, n_out, dtype, layout).items():
            check(name, args, tile=tile)


@by_dtype
@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid", "tanh", "softmax"])
def test_dense_activations(activation, dtype):
    check("dense", dense_args(9, 20, 7, dtype, activation=activation)["dense"])


@by_dtype
@hypothesis.given(st.data())
def test_any_dense_activations_softmax(dtype, data):
    """Leading dimensions in any order and number, some expanded, each operand in a layout of its own."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    leading = draw(st.lists(st.integers(1, 4), max_size=4))
    n_in, n_out = draw(st.integers(1, 40)), draw(st.integers(1, 40))

    def tensor(*shape):
        values = laid_out(rand(*shape, dtype=dtype), draw(st.sampled_from(LAYOUTS)))
        order = draw(st.permutations(range(len(shape) - 1)))
        values = values.permute(*order, -1).contiguous().permute(*[order.index(d) for d in range(len(order))], -1)
        if len(shape) > 1 and draw(st.booleans()):
            values = values[:1].expand(shape)
        return values

    x, delta, w, b = tensor(*leading, n_in), tensor(*leading, n_out), rand(n_in, n_out, dtype=dtype), tensor(n_out)
    w = laid_out(w, draw(st.sampled_from(LAYOUTS)))
    tile = draw(st.sampled_from(list(_emulator.TILES)))
    check("dense", (x, w, b, draw(st.sampled_from(["none", "relu", "sigmoid", "tanh", "softmax"]))), tile=tile)
    check("dense_backward_input", (delta, w), tile=tile)
    check("dense_backward_weights", (delta, x), tile=tile)
    check("dense_update_", (delta, x, w, b, 0.1, 0.01), tile=tile)
    for name in ELEMENTWISE:
        check(name, (x,))
        check(f"{name}_backward", (x, tensor(*leading, n_in)))
    check("softmax", (x,))
    check("softmax_backward", (delta, tensor(*leading, n_out).softmax(-1)))


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 255, 2047, 2048, 2049])
def test_activations(size, layout, dtype):
    """Sizes around those of an access of 16 bytes and of a block."""
    for shape in ((size,), (3, size)):
        z, delta = laid_out(rand(*shape, dtype=dtype), layout), laid_out(rand(*shape, dtype=dtype), layout)
        for name in ELEMENTWISE:
            check(name, (z,))
            check(f"{name}_backward", (delta, twins.sigmoid(z)))


@by_dtype
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize("columns", [0, 1, 31, 33, 127, 128, 129, 511, 512, 513, 8191, 8192, 8193])
def test_softmax(columns, layout, dtype):
    """Around the sizes at which a row takes more registers, a whole block, and two reads."""
    z = laid_out(4 * rand(3, columns, dtype=dtype), layout)
    check("softmax", (z,))
    check("softmax_backward", (laid_out(rand(3, columns, dtype=dtype), layout), z.softmax(-1)))


@by_dtype
def test_activations_softmax_of_scalars(dtype):
    for name in (*ELEMENTWISE, "softmax"):
        check(name, (rand(dtype=dtype),))
        check(f"{name}_backward", (rand(dtype=dtype), rand(dtype=dtype)))


SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e4, -1e4, 6e-8, -1e-45, 5e-324, 80.0, -80.0]


@by_dtype
def test_dense_activations_softmax_special_values(dtype):
    """NaN, infinities, signed zeros, subnormals, and what saturates an exponential."""
    z = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    delta = torch.linspace(-2, 2, len(z)).to(dtype)
    for name in ELEMENTWISE:
        for op, args in ((name, (z,)), (f"{name}_backward", (delta, z))):
            for element in range(len(z)):  # each by itself: a norm would hide the small ones
                check(op, [arg[element] for arg in args])
            ours, right = kernel(op, *args), narrowed(formula(op, args)[0], dtype)
            known = ~right.isnan()
            same(ours[known].signbit(), right[known].signbit(), f"{op}, signs")
    for columns in (3, 200, 1000, 9000):  # each way to take a row
        rows = torch.zeros(len(SPECIAL) + 1, columns, dtype=dtype)
        rows[:-1, 1] = z
        rows[-1] = -math.inf
        rows[0, 2], rows[3, 0], rows[4, :2] = 1, -math.inf, -math.inf
        check("softmax", (rows,))
    for value in z:
        x, w = torch.ones(5, 4, dtype=dtype), torch.ones(4, 3, dtype=dtype)
        x[1, 2] = w[0, 1] = value
        for tile in TILES:
            for activation in ("none", "relu", "sigmoid", "tanh"):
                check("dense", (x, w, w[0], activation), tile=tile)
            check("dense_backward_input", (x, w.T.contiguous()), tile=tile)
            check("dense_backward_weights", (x, x), tile=tile)


def test_dense_update_of_an_infinite_parameter():
    w, b = torch.tensor([[math.inf, 1.0]]), torch.tensor([-math.inf, 1.0])
    kernel("dense_update_", torch.zeros(3, 2), torch.zeros(3, 1), w, b, 0.1, 0.0)
    same([w, b], [torch.tensor([[math.inf, 1.0]]), torch.tensor([-math.inf, 1.0])], "dense_update_")


def launched(name, *args):
    _emulator.record(True)
    kernel(name, *args)
    launches = _emulator.launches()
    _emulator.record(False)
    return launches


@pytest.mark.backends("emulator")
@pytest.mark.parametrize(
    ("m", "n", "tile"),
    [
        (1, 1, "thin"),
        (1000, 16, "thin"),
        (333, 32, "small"),
        (512, 511, "small"),
        (1024, 512, "medium"),
        (2048, 1024, "large"),
    ],
)
def test_dense_matmul_tiles_are_chosen_by_shape(m, n, tile):
    (launch,) = launched("dense", rand(m, 2), rand(2, n), rand(n), "none")
    rows, columns, _ = TILES[tile]
    assert f"TileShape<{rows}, {columns}, " in launch.kernel
    assert launch.grid == (-(-m // rows) * -(-n // columns), 1, 1)


@by_dtype
@pytest.mark.parametrize("m", [1023, 1024, 3001])
def test_dense_matmul_rows_are_shared_out(m, dtype):
    args = dense_args(m, 6, 5, dtype)
    for name in ("dense_backward_weights", "dense_update_"):
        check(name, args[name])
        if _backend.current == "emulator":
            launches = launched(name, *args[name])
            assert launches[0].grid == (1, max(1, m // 512), 1)
            assert ["add_partials" in launch.kernel for launch in launches] == ([False, True] if m >= 1024 else [False])


@pytest.mark.backends("emulator")
def test_dense_activations_softmax_of_nothing_launch_nothing():
    assert not launched("dense", rand(0, 3), rand(3, 4), rand(4), "softmax")
    assert not launched("softmax_backward", rand(3, 0), rand(3, 0))
    assert not launched("relu", rand(0))


@pytest.mark.backends("emulator")
@by_dtype
def test_dense_softmax_bits_for_any_order_of_threads_and_blocks(dtype):
    calls = [(name, args) for size in (40, 1100) for name, args in dense_args(size, 35, 33, dtype).items()]
    calls += [("softmax", (rand(5, columns, dtype=dtype),)) for columns in (100, 1000, 9000)]
    calls += [("softmax_backward", (rand(5, 9000, dtype=dtype), rand(5, 9000, dtype=dtype)))]
    for name, args in calls:
        found = []
        for seed in range(3):
            _emulator.seed(seed)
            found.append(results(functools.partial(kernel, name), name, args))
        for other in found[1:]:
            same(found[0], other, name)


def far(rows, columns):
    """Elements more than 2^31 apart; only the pages that are touched take memory."""
    torch.use_deterministic_algorithms(False)
    stride = 2**31 // (rows - 1) + 1
    return torch.empty(stride * (rows - 1) + columns, dtype=torch.float16).as_strided((rows, columns), (stride, 1))


def test_dense_activations_softmax_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    assert x.storage_offset() + 2 * x.stride(0) >= 2**31
    w, b = rand(8, 4, dtype=torch.float16), rand(4, dtype=torch.float16)
    check("dense", (x, w, b, "none"))
    check("dense_backward_input", (x[:, :4], w))
    check("dense_backward_weights", (x, x))
    check("tanh", (x,))
    check("tanh_backward", (x, x))
    check("softmax", (x,))
    check("softmax_backward", (x, x))


def test_activations_softmax_dense_of_more_than_16_dimensions_that_do_not_merge():
    """They are copied first."""
    x = torch.zeros([2] * 17).permute(*range(0, 17, 2), *range(1, 17, 2))
    check("tanh", (x,))
    check("tanh_backward", (x, x.clone(memory_format=torch.contiguous_format)))
    check("softmax", (x,))
    check("dense_backward_input", (x, rand(3, 2, dtype=torch.float32)))
    check("dense_backward_weights", (x, x))


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_dense_backward_input_of_the_activation_below(activation, layout, dtype):
    """The bits of two kernels, one after the other."""
    for m, n_in, n_out in ((40, 24, 16), (33, 19, 35)):
        delta, w = dense_args(m, n_in, n_out, dtype, layout)["dense_backward_input"]
        a = laid_out(rand(m, n_in, dtype=dtype), layout)
        expected = kernel(f"{activation}_backward", kernel("dense_backward_input", delta, w), a)
        same(kernel("dense_backward_input", delta, w, a, activation), expected, f"dense_backward_input of {activation}")


@pytest.mark.backends("emulator")
def test_dense_activations_softmax_losses_sgd_batch_run_on_the_stream_and_device_that_are_current():
    x, controls = torch.ones(3, 3), _emulator.current().controls
    controls.emulator_set_stream(7)
    controls.cudaSetDevice(1)
    _emulator.record(True)
    for name, args in dense_args(3, 3, 3, torch.float32).items():
        kernel(name, *args)
    for name in (*ELEMENTWISE, "softmax"):
        kernel(name, x)
        kernel(f"{name}_backward", x, x)
    kernel("mse", x, x)
    kernel("cross_entropy", x, x)
    kernel("sgd_update_", [x], [x.clone()], [], 0.1, 0.0, 0.0, 0.0, False, False, False)
    step = torch.tensor(0)
    kernel("take_batch_", x, x, torch.arange(3), step, 3, x.clone(), x.clone())
    kernel("mse_step_", x, x, x[0], step)
    kernel("cross_entropy_step_", x, x, x[0], step)
    assert [(launch.device, launch.stream) for launch in _emulator.launches()] == [(1, 7)] * (4 + 8 + 6)
    _emulator.record(False)
    controls.cudaSetDevice(0)
    controls.emulator_set_stream(0)


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 7, 9, 511, 1023, 1025, 8191, 8192, 8193, 30000])
def test_losses_mse(size, layout, dtype):
    """Sizes around those of an access of 16 bytes, of a round of a block, and of a second block."""
    check("mse", tuple(laid_out(rand(size, dtype=dtype), layout) for _ in range(2)))
    check("mse", (laid_out(rand(3, size // 3 + 1, dtype=dtype), layout), rand(3, size // 3 + 1, dtype=dtype)))


@by_dtype
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize("columns", [1, 31, 33, 127, 128, 129, 511, 512, 513, 4095, 4096, 4097])
def test_losses_cross_entropy(columns, layout, dtype):
    """Around the sizes at which a row takes more registers, a whole block, and two reads; by rows and by index."""
    for rows in (3, 33) if columns < 1000 else (3,):
        scores = laid_out(4 * rand(rows, columns, dtype=dtype), layout)
        check("cross_entropy", (scores, laid_out(rand(rows, columns).softmax(1).to(dtype), layout)))
        check("cross_entropy", (scores, torch.randint(columns, (2 * rows,))[::2]))


@by_dtype
@pytest.mark.parametrize("columns", [3, 200, 600, 5000])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_losses_cross_entropy_without_some_rows(columns, ignored, dtype):
    """As of the others alone; of one block and several."""
    for rows in (1, 5, 40):
        scores, classes = rand(rows, columns, dtype=dtype), torch.randint(2, columns, (2 * rows,))[::2]
        classes[rows // 3 :: 2] = ignored
        loss, gradient = kernel("cross_entropy", scores, classes, ignored)
        kept = classes != ignored
        expected, others = kernel("cross_entropy", scores[kept].contiguous(), classes[kept])
        if rows == 1:
            is_nan(expected, "cross_entropy, loss of nothing")
        units = 16 * torch.finfo(dtype).eps  # the order of the sum
        same(loss, expected, "cross_entropy, loss", units, equal_nan=rows == 1)
        same(gradient[kept], others, "cross_entropy, gradient")
        same(gradient[~kept], torch.zeros_like(scores)[~kept], "cross_entropy, gradient of rows without a part")
        wrong = classes.clone()
        wrong[kept] = columns
        is_nan(kernel("cross_entropy", scores, wrong, ignored)[0], "cross_entropy, loss of what is no class")


@by_dtype
def test_losses_special_values(dtype):
    """NaN and infinities, no loss of nothing, and NaN for an index that is no class."""
    for columns in (3, 200, 1000, 9000):
        scores = torch.zeros(len(SPECIAL) + 1, columns, dtype=dtype)
        scores[:-1, 1] = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
        scores[-1] = -math.inf
        for index in (0, 1):
            for row in scores:
                check("cross_entropy", (row[None], torch.tensor([index])))
        for index in (-100, -1, columns):
            loss, gradient = kernel("cross_entropy", rand(2, columns, dtype=dtype), torch.tensor([0, index]))
            is_nan(loss, "cross_entropy, loss of what is no class")
            is_nan(gradient[1], "cross_entropy, gradient of what is no class")
            assert not gradient[0].isnan().any(), f"cross_entropy in {shown(dtype)}: NaN in the row of a class"
    for value in SPECIAL:
        check("mse", (torch.tensor([1.0, value, 0.5]).to(dtype), torch.tensor([0.0, 0.0, 2.0], dtype=dtype)))
    for name, shape in (("mse", (0,)), ("mse", (3, 0)), ("cross_entropy", (0, 4))):
        loss, gradient = kernel(name, torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
        is_nan(loss, f"{name}, loss of nothing")
        same(gradient, torch.zeros(shape, dtype=dtype), f"{name}, gradient of nothing")
    for index in (True, False):
        targets = torch.zeros(0, dtype=torch.int64) if index else torch.zeros(0, 4, dtype=dtype)
        is_nan(kernel("cross_entropy", torch.zeros(0, 4, dtype=dtype), targets)[0], "cross_entropy, loss of nothing")


@by_dtype
@pytest.mark.parametrize("activation", ["none", *ELEMENTWISE, "softmax"])
def test_dense_without_bias(activation, dtype):
    """The same bits as with one of zeros."""
    x, w = rand(7, 5, dtype=dtype), rand(5, 3, dtype=dtype)
    expected = kernel("dense", x, w, torch.zeros(3, dtype=dtype), activation)
    same(kernel("dense", x, w, None, activation), expected, f"dense with {activation}")


@by_dtype
def test_dense_gradients_lie_as_torchs_weights(dtype):
    """So that autograd takes them without a copy; whether or not the rows are shared out."""
    for m in (7, 1100):
        dw, _ = kernel("dense_backward_weights", rand(m, 3, dtype=dtype), rand(m, 5, dtype=dtype))
        assert (dw.shape, dw.mT.is_contiguous()) == ((5, 3), True)


@by_dtype
def test_softmax_over_any_dimension(dtype):
    """Contiguous, as torch's; the same bits as over the last one."""
    for z in (rand(4, 3, 5, dtype=dtype), rand(5, 3, 4, dtype=dtype).mT[:, ::2], rand(dtype=dtype)):
        delta = rand(*z.shape, dtype=dtype)
        for dim in range(-z.dim(), max(1, z.dim())):
            moved = (t.movedim(dim, -1) if z.dim() else t for t in (z, delta))
            a, dz = kernel("softmax", z, dim), kernel("softmax_backward", delta, kernel("softmax", z, dim), dim)
            z_last, delta_last = moved
            a_last = kernel("softmax", z_last)
            dz_last = kernel("softmax_backward", delta_last, a_last)
            for name, result, last in (("softmax", a, a_last), ("softmax_backward", dz, dz_last)):
                assert result.is_contiguous()
                same(result, last.movedim(-1, dim) if z.dim() else last, f"{name} along {dim}")


@pytest.mark.backends("emulator")
def test_losses_are_summed_by_as_many_blocks_as_the_shape_says():
    for name, args, blocks in (
        ("mse", (rand(8192), rand(8192)), [1]),
        ("mse", (rand(8193), rand(8193)), [2, 1]),
        ("cross_entropy", (rand(32, 512), rand(32, 512)), [1]),
        ("cross_entropy", (rand(33, 512), rand(33, 512)), [2, 1]),
        ("cross_entropy", (rand(3, 513), rand(3, 513)), [3, 1]),
        ("cross_entropy", (rand(1100, 513), torch.zeros(1100, dtype=torch.int64)), [1024, 1]),
        ("cross_entropy", (rand(33, 512), torch.zeros(33, dtype=torch.int64), 1), [1, 2, 1]),
    ):
        assert [launch.grid for launch in launched(name, *args)] == [(number, 1, 1) for number in blocks]


@pytest.mark.backends("emulator")
def test_losses_bits_for_any_order_of_threads_and_blocks():
    for name, args in (("mse", (rand(9000), rand(9000))), ("cross_entropy", (rand(200, 600), rand(200, 600)))):
        found = []
        for seed in range(3):
            _emulator.seed(seed)
            found.append(kernel(name, *args))
        for other in found[1:]:
            same(found[0], other, name)


@by_dtype
@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_losses_of_a_step(name, dtype):
    """The same loss and gradient, whether one block sums it or several; written to its place alone."""
    for rows in (30, 3000):
        args = rand(rows, 4, dtype=dtype), rand(rows, 4, dtype=dtype).softmax(1)
        loss, gradient = kernel(name, *args)
        for stride, place in ((1, 0), (3, 2), (3, 5), (1, 7)):
            losses, step = rand(5 * stride, dtype=dtype), torch.tensor(place)
            expected = losses.clone()
            expected[::stride][place : place + 1] = loss
            same(kernel(f"{name}_step_", *args, losses[::stride], step), gradient, f"{name}_step_, gradient")
            same(losses, expected, f"{name}_step_, losses")
            same(step, torch.tensor(place + 1), f"{name}_step_, step")


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [0, 1, 3, 8, 255, 1500])
def test_batch(columns, layout, dtype):
    """Rows are taken wherever they lie; with classes, and with rows of another width beside them."""
    x = laid_out(rand(40, columns, dtype=dtype), layout)
    order = torch.randperm(40).repeat_interleave(2)[::2]
    for y in (torch.randint(9, (80,))[::2], laid_out(rand(40, 300, dtype=dtype), layout)):
        for step, m in ((0, 1), (2, 17), (1, 0)):
            batch = [torch.cat([data[:m].clone(), data.new_zeros(1, *data.shape[1:])])[:m] for data in (x, y)]
            kernel("take_batch_", x, y, order, torch.tensor(step), 11, *batch)
            rows = order[11 * step :][:m]
            same(batch[0], x[rows], "take_batch_, x")
            same(batch[1], y[rows], "take_batch_, y")


def test_batch_reads_no_sample_that_is_none():
    x, y = rand(5, 3), torch.arange(5)
    order = torch.tensor([4, -1, 5, 0, 2**40])
    for step, expected in ((0, [4, 9, 9, 0]), (1, [9] * 4), (2**40, [9] * 4), (-1, [9] * 4)):
        x_batch, y_batch = torch.full((4, 3), 9.0, dtype=torch.float64), torch.full((4,), 9)
        kernel("take_batch_", x, y, order, torch.tensor(step), 4, x_batch, y_batch)
        same(y_batch, torch.tensor(expected), "take_batch_, y")
        rows = [x[i] if i < 5 else torch.full((3,), 9.0, dtype=torch.float64) for i in expected]
        same(x_batch, torch.stack(rows), "take_batch_, x")


def test_batch_offsets_beyond_32_bits():
    x, order = far(3, 8).copy_(rand(3, 8)), torch.tensor([2, 0])
    x_batch, y_batch = torch.empty(2, 8, dtype=x.dtype), torch.empty(2, dtype=torch.int64)
    kernel("take_batch_", x, torch.arange(3), order, torch.tensor(0), 2, x_batch, y_batch)
    same(x_batch, x[order], "take_batch_, x")


def test_losses_offsets_beyond_32_bits():
    x = far(3, 8).copy_(rand(3, 8))
    check("mse", (x, x.flip(1)))
    check("cross_entropy", (x, x.abs()))


#: weight_decay, momentum, dampening, nesterov, maximize
SGD = {
    "plain": (0.0, 0.0, 0.0, False, False),
    "decay": (0.1, 0.0, 0.0, False, True),
    "momentum": (0.0, 0.9, 0.5, False, False),
    "nesterov": (0.1, 0.9, 0.0, True, False),
    "all but": (0.1, 0.9, 0.5, False, True),
}


def check_sgd(params, grads, buffers, options, is_first_step):
    """One step, against its formula in extended precision: a rounding of each result, and one of each term."""
    weight_decay, momentum, dampening, nesterov, maximize = options
    before = [[wide(tensor) for tensor in tensors] for tensors in (params, grads, buffers)]
    memory = [[same_memory(tensor) for tensor in tensors] for tensors in (params, buffers)]
    kernel("sgd_update_", params, grads, buffers, 0.3, *options, is_first_step)
    for tensors, copies in zip((params, buffers), memory, strict=True):
        for tensor, copy in zip(tensors, copies, strict=True):
            copy.copy_(tensor)
            same(all_bytes(tensor), all_bytes(copy), f"sgd_update_, {BETWEEN}")
    for i, param in enumerate(params):
        p, g = before[0][i], before[1][i] * (-1 if maximize else 1)
        g, size = g + weight_decay * p, abs(g) + weight_decay * abs(p)
        unit, sum_unit = torch.finfo(param.dtype).eps, np.finfo(sum_type(param.dtype)).eps
        if momentum:
            m = before[2][i]
            new = g if is_first_step else momentum * m + (1 - dampening) * g
            size = size + (0 if is_first_step else abs(momentum * m))
            assert_within(unit * abs(new) + 3 * sum_unit * size, buffers[i], new, f"sgd_update_, momentum {i}")
            g, size = (g + momentum * new, 2 * size) if nesterov else (new, size)
        expected = p - 0.3 * g
        limit = unit * abs(expected) + 6 * sum_unit * (abs(p) + 0.3 * size)
        assert_within(limit, param, expected, f"sgd_update_, parameter {i}")


@pytest.mark.parametrize("options", SGD)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sgd(layout, options):
    """Many sizes and all dtypes in one launch, their gradients and momenta in layouts of their own."""
    shapes = [(), (0,), (1,), (7,), (3, 5), (1023,), (1024,), (2, 1025), (0, 4)]
    params = [
        laid_out(rand(*shape, dtype=dtype), layout) if shape else rand(dtype=dtype)
        for shape in shapes
        for dtype in DTYPES
    ]
    grads = [rand(*p.shape[::-1], dtype=p.dtype).permute(list(range(p.dim()))[::-1]) for p in params]
    buffers = [laid_out(rand(*p.shape, dtype=p.dtype), layout) if p.dim() else p.clone() for p in params]
    for is_first_step in (True, False):
        check_sgd(params, grads, buffers if SGD[options][1] else [], SGD[options], is_first_step)
    if _backend.current == "emulator":
        assert len(launched("sgd_update_", params, grads, buffers, 0.3, *SGD[options], False)) == 1


@pytest.mark.parametrize("count", [1, 31, 32, 33, 255, 256, 257])
def test_sgd_of_many_tensors(count):
    params = [rand(i % 5 * 300 + 1, dtype=DTYPES[i % 4]) for i in range(count)]
    grads = [rand(*p.shape, dtype=p.dtype) for p in params]
    check_sgd(params, grads, [], SGD["decay"], False)
    if _backend.current == "emulator":
        assert len(launched("sgd_update_", params, grads, [], 0.3, *SGD["plain"], False)) == (2 if count > 256 else 1)
        assert not launched("sgd_update_", [rand(0)] * 3, [rand(0)] * 3, [], 0.3, *SGD["plain"], False)


def test_sgd_of_layouts_that_do_not_merge():
    orders = [(2, 0, 1, 3), (1, 3, 2, 0), (0, 1, 2, 3), (3, 2, 1, 0)]
    params = [rand(3, 3, 3, 3).permute(order) for order in orders]
    grads = [rand(3, 3, 1, 3).expand(3, 3, 3, 3) for _ in orders]
    check_sgd(params, grads, [rand(3, 3, 3, 3) for _ in orders], SGD["nesterov"], False)
    many = torch.zeros([2] * 20).permute(*range(0, 20, 2), *range(1, 20, 2))
    one, other = rand(2), many.clone(memory_format=torch.contiguous_format)
    with pytest.raises(RuntimeError, match="more than 16 dimensions that cannot be merged"):
        kernel("sgd_update_", [one, other], [one.clone(), many], [], 0.3, *SGD["plain"], False)


def test_sgd_of_an_infinite_parameter_and_offsets_beyond_32_bits():
    p = torch.tensor([math.inf, -math.inf, 1.0])
    kernel("sgd_update_", [p], [torch.zeros(3)], [], 0.1, *SGD["plain"], False)
    same(p, torch.tensor([math.inf, -math.inf, 1.0]), "sgd_update_")
    x = far(3, 8).copy_(rand(3, 8))
    kernel("sgd_update_", [x], [x.clone()], [], 0.5, *SGD["plain"], False)
    kernel("sgd_update_", [x], [x.clone()], [], 1.0, *SGD["plain"], False)
    same(x, torch.zeros(3, 8, dtype=x.dtype), "sgd_update_")
