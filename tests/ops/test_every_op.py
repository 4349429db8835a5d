"""What all ops have in common: results, gradients, registration, refusals, costs. The files beside tell the cases."""

import math

import pytest
import torch
from cases import as_tuple, cases, cast, families, outputs, public, tensors
from kernels import by_dtype, kernel, of_kernels
from oracle import first, same

from scratchcuda.ops import _emulator
from scratchcuda.ops._registry import OPS, twins
from scratchcuda.profiler import costs

by_op = pytest.mark.parametrize("name", OPS)
by_op_that_returns = pytest.mark.parametrize("name", [name for name in OPS if not name.endswith("_")])


def test_every_op_has_a_case():
    assert cases().keys() == OPS.keys()
    assert all(case.costs and case.refused for case in cases().values())


@by_dtype
@pytest.mark.parametrize("m", [1, 2, 33])
@by_op
def test_against_oracle(name, m, dtype):
    args = [cast(arg, dtype) for arg in cases()[name].arguments(m)]
    expected = as_tuple(cases()[name].theirs(*(cast(arg, torch.float64) for arg in args)))
    for ours, exact in zip(outputs(name, public(name)(*args), args), expected, strict=True):
        assert ours.dtype == (dtype if exact.is_floating_point() else exact.dtype)
        off = (ours.double() - exact).abs().nan_to_num(math.inf)
        # A few roundings on each of at most 33 summed terms of like size.
        limit = 8 * torch.finfo(dtype).eps * exact.double().norm()
        assert off.norm() <= limit, f"{name} in {dtype}: {first(off == off.max(), ours, exact)}"


@by_op_that_returns
def test_any_strides(name):
    args = cases()[name].arguments(6)
    strided = [torch.stack([a, a], -1).mT.contiguous().mT[..., 0] if isinstance(a, torch.Tensor) else a for a in args]
    assert not strided[0].is_contiguous()
    expected = as_tuple(public(name)(*args))
    for ours, exact in zip(as_tuple(public(name)(*strided)), expected, strict=True):
        torch.testing.assert_close(ours, exact)


@by_op_that_returns
def test_public_functions_are_differentiable(name):
    args, function = cases()[name].arguments(3), public(name)
    inputs = tuple(a.requires_grad_() for a in args if isinstance(a, torch.Tensor))

    def of_tensors(*tensors):
        given = iter(tensors)
        return function(*(next(given) if isinstance(a, torch.Tensor) else a for a in args))

    assert torch.autograd.gradcheck(of_tensors, inputs)


@by_op
def test_public_functions_compile_whole(name):
    args = cases()[name].arguments(4)
    others = [[v.clone() for v in a] if isinstance(a, list) else a.clone() if hasattr(a, "clone") else a for a in args]
    function = public(name)
    torch._dynamo.reset()
    result = torch.compile(lambda *args: function(*args), fullgraph=True, backend="aot_eager")(*others)
    expected = function(*args)
    written = [[a for a in arguments if not isinstance(a, str)] for arguments in (others, args)]
    torch.testing.assert_close([result, written[0]], [expected, written[1]])


@pytest.fixture
def raw(backend):
    """The registered ops of this backend."""
    return _emulator.current().ops if backend == "emulator" else torch.ops.scratchcuda


@by_op
def test_registration(name, raw):
    results = torch.library.opcheck(getattr(raw, name), cases()[name].arguments(4))
    assert set(results.values()) == {"SUCCESS"}
    written = torch._C.parse_schema(name + OPS[name].schema)  # whose text has 1. for 1.0
    assert str(getattr(raw, name).default._schema).partition("::")[2] == str(written)
    assert callable(getattr(twins, name))


REFUSED = [(name, refused) for name, case in cases().items() for refused in case.refused]


@pytest.mark.parametrize(("name", "refused"), [pair for pair in REFUSED if pair[1].exception])
def test_refusals(name, refused):
    t = tensors()
    before = [value.clone() for value in vars(t).values()]
    with pytest.raises(refused.exception, match=refused.message):
        public(name)(*refused.args(t))
    same([*vars(t).values()], before)


@pytest.mark.backends("emulator")
@pytest.mark.parametrize(("name", "refused"), [pair for pair in REFUSED if pair[1].raw is not None])
def test_raw_ops_refuse(name, refused, raw):
    """In C++, callers who come past the public functions."""
    refuses(raw, "CPU", name, refused)


def refuses(raw, key, name, refused):
    """Calls the implementation of this dispatch key, wherever the tensors are."""
    t = tensors()
    before = [value.clone() for value in vars(t).values()]
    implementation = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    with pytest.raises(RuntimeError, match=refused.raw or refused.message):
        getattr(raw, name).default.redispatch(implementation, *refused.args(t))
    same([*vars(t).values()], before)


@pytest.mark.backends("tensor")
@by_dtype
@by_op
def test_costs_by_hand(name, dtype):
    op = getattr(torch.ops.scratchcuda, name).default
    for cost in cases()[name].costs:
        args = [cast(arg, dtype) for arg in cost.args(tensors())]
        found = costs.cost(op, tuple(args), {}, op(*args))
        assert found == (cost.products, cost.others, cost.elements * dtype.itemsize + cost.other_bytes, True)
        assert found.flops == cost.products + cost.others


@of_kernels
@pytest.mark.backends("emulator")
@pytest.mark.parametrize(
    "name", [pytest.param(op, id=f"{op} of {name}") for name, of in families().items() for op in of]
)
def test_kernels_run_on_the_stream_and_device_that_are_current(name):
    controls = _emulator.current().controls
    controls.emulator_set_stream(7)
    controls.cudaSetDevice(1)
    _emulator.record(True)
    kernel(name, *cases()[name].arguments(3))
    assert {(launch.device, launch.stream) for launch in _emulator.launches()} == {(1, 7)}
    _emulator.record(False)
    controls.cudaSetDevice(0)
    controls.emulator_set_stream(0)
