"""The matrix products of the dense layer's kernels, in each of their tiles."""

import pytest
from cases import rand
from kernels import LAYOUTS, TILES, by_dtype, check, dense_args, launched, of_kernels

from scratchcuda.ops import _backend


@of_kernels
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


@of_kernels
@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tile", TILES)
def test_dense_matmul_layouts(tile, layout, dtype):
    for m, n_in, n_out in ((40, 24, 16), (33, 19, 35)):
        for name, args in dense_args(m, n_in, n_out, dtype, layout).items():
            check(name, args, tile=tile)


@of_kernels
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


@of_kernels
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
