"""What a call of an op must at least do: arithmetic, and bytes to and from memory.

Of our ops their own files tell (:class:`scratchcuda.ops._registry.Op`), of torch's the tables here.

Bytes follow from the schema: each tensor that the op reads is read once, each one that it returns or mutates is written
once; :data:`_MOVED` has the ops for which that is too much. Of an expanded tensor only what lies in memory counts, and
an argument that is passed twice counts once.

FLOPs of matrix products are 2 m k n, as torch counts them. Those of other ops are so many for each element
(:data:`_PER_ELEMENT`), where a sum, a product, a quotient, a comparison, a logarithm, an exponential and a hyperbolic
tangent count as one each. torch.utils.flop_counter counts products alone, by convention, and so it counts ours.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from scratchcuda.ops import adam, sgd
from scratchcuda.ops._bytes import stored, tensors_of, total
from scratchcuda.ops._registry import OPS


class Cost(NamedTuple):
    """The least that a call has to do.

    Attributes:
        products: FLOPs of its matrix products.
        others: FLOPs of all else.
        bytes: read and written.
        counted: whether its FLOPs are known; those of what is not are given as 0.
    """

    products: int
    others: int
    bytes: int
    counted: bool = True

    @property
    def flops(self) -> int:
        return self.products + self.others


def cost(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Cost:
    """What one call has to do at least; a view costs nothing.

    Args:
        op: an overload, as ``torch.ops.aten.mm.default`` or one of ours.
        args, kwargs: as it was called.
        out: what it has returned.
    """
    if op.is_view:
        return Cost(0, 0, 0)
    name, given = name_of(op), arguments(op, args, kwargs)
    products, others = _products(op, name, given, args, kwargs, out), _others(op, name, given, out)
    is_counted = products is not None or others is not None
    return Cost(products or 0, others or 0, _bytes(op, name, given, out), is_counted)


def name_of(op: Any) -> str:
    """Of an overload, without its namespace and its own name."""
    return op._schema.name.rpartition("::")[2]


def is_ours(op: Any) -> bool:
    """Whether it is one of the ops of :mod:`scratchcuda.ops._registry`, in the namespace of any build."""
    return op.namespace.startswith("scratchcuda")


def arguments(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, with their defaults."""
    found = {}
    for i, argument in enumerate(op._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = args[i] if i < len(args) else kwargs.get(argument.name, default)
    return found


#: FLOPs for each element of the largest tensor, of ops that are no products; in place or not. Of torch's pointwise ops
#: that are not here it is 1 for each element of the result, of its reductions 1 for each element of the argument.
_PER_ELEMENT = {
    "_softmax": 5,
    "_log_softmax": 5,
    "_softmax_backward_data": 4,
    "_log_softmax_backward_data": 4,
    "_safe_softmax": 5,
    # mean 1, variance 3, normalized 1, scaled and shifted 2; backward: normalized 2, its gradient 1, the two means of
    # that 3, combined 4, the gradients of scale and shift 3
    **dict.fromkeys((f"{by}_norm" for by in ("native_layer", "native_group", "native_batch", "cudnn_batch")), 7),
    **dict.fromkeys((f"{by}_norm_backward" for by in ("native_layer", "native_group", "native_batch")), 13),
    "cudnn_batch_norm_backward": 13,
    "_adaptive_avg_pool2d": 1,
    "_adaptive_avg_pool2d_backward": 1,
    "cumsum": 1,
    # the value and its part of a sum; backward: the derivative, times the gradient from above, over n
    "mse_loss": 3,
    "mse_loss_backward": 3,
    "huber_loss": 6,
    "huber_loss_backward": 5,
    "smooth_l1_loss": 7,
    "smooth_l1_loss_backward": 6,
    "binary_cross_entropy": 10,
    "binary_cross_entropy_backward": 7,
    "binary_cross_entropy_with_logits": 10,
    "threshold_backward": 1,
    "dot": 2,
    "vdot": 2,
    "mv": 2,
    "addmv": 2,
    "addr": 3,
}


#: FLOPs beside the products, of ops in which they are no multiple of one tensor's elements.
_OTHERS: dict[str, Callable[[dict[str, Any], Any], int]] = {
    "_fused_adam": lambda of, out: adam.flops(of, of["self"]),
    "_fused_adamw": lambda of, out: adam.flops(of | {"decoupled_weight_decay": True}, of["self"]),
    "_fused_sgd": lambda of, out: sgd.flops(of, of["self"]),
    "convolution_backward": lambda of, out: of["output_mask"][2] * of["grad_output"].numel(),
    "nll_loss_forward": lambda of, out: of["target"].numel(),
    "nll_loss2d_forward": lambda of, out: of["target"].numel(),
    "embedding_dense_backward": lambda of, out: of["grad_output"].numel(),
    "index_put": lambda of, out: of["accumulate"] * of["values"].numel(),
    "index_add": lambda of, out: of["source"].numel(),
    "scatter_add": lambda of, out: of["src"].numel(),
    "max_pool2d_with_indices": lambda of, out: out[0].numel() * math.prod(of["kernel_size"]),
    "max_pool2d_with_indices_backward": lambda of, out: of["grad_output"].numel(),
    "avg_pool2d": lambda of, out: out.numel() * math.prod(of["kernel_size"]),
    "avg_pool2d_backward": lambda of, out: of["grad_output"].numel() * math.prod(of["kernel_size"]),
}


def _attention(shapes: int) -> Callable[[dict[str, Any], Any], int]:
    """So many products of queries (b, h, m, d) with keys (b, h, n, d)."""
    return lambda of, out: shapes * 2 * of["query"].numel() * of["key"].shape[-2]


def _convolution_backward(of: dict[str, Any], out: Any) -> int:
    """The gradients of input and weight take as many multiply-adds as the forward, each of them once."""
    sites = of["input"] if of["transposed"] else of["grad_output"]  # each meets one filter, of its group's channels
    return 2 * sites.numel() * math.prod(of["weight"].shape[1:]) * sum(of["output_mask"][:2])


def _recurrent(of: dict[str, Any], weights: Iterable[Tensor]) -> int:
    """Each row of the input, of any step and sample, or the state there, by each matrix of weights, and no bias."""
    rows = math.prod(of["input"].shape[:-1])
    return 2 * rows * sum(weight.numel() for weight in weights if weight.dim() == 2)


def _trilinear(of: dict[str, Any], out: Any) -> int:
    """The sum of i1 i2 i3 over some dimensions, as two products: those that i3 lacks are summed by the first."""
    first, second, third = (list(of[f"i{i}"].shape) for i in (1, 2, 3))
    for i, shape in enumerate((first, second, third), 1):
        for dim in sorted(of[f"expand{i}"]):
            shape.insert(dim, 1)
    both = [max(sizes) for sizes in zip(first, second, strict=True)]
    summed = [1 if dim in of["sumdim"] and third[dim] == 1 else size for dim, size in enumerate(both)]
    return 2 * math.prod(both) + 2 * math.prod(map(max, summed, third))


#: Products of torch's ops that its own counter leaves out, or counts without regard to groups.
_OF_TORCH: dict[str, Callable[[dict[str, Any], Any], int]] = {
    "convolution_backward": _convolution_backward,
    "mkldnn_rnn_layer": lambda of, out: _recurrent(of, (of["weight0"], of["weight1"])),
    "mkldnn_rnn_layer_backward": lambda of, out: 2 * _recurrent(of, (of["weight1"], of["weight2"])),
    "_cudnn_rnn": lambda of, out: _recurrent(of, of["weight"]),
    "_cudnn_rnn_backward": lambda of, out: (1 + of["output_mask"][3]) * _recurrent(of, of["weight"]),
    "_trilinear": _trilinear,
    "_addmm_activation": lambda of, out: 2 * of["mat1"].numel() * of["mat2"].shape[1],
    "addbmm": lambda of, out: 2 * of["batch1"].numel() * of["batch2"].shape[-1],
    "_euclidean_dist": lambda of, out: 2 * of["x1"].numel() * of["x2"].shape[-2],
    "_scaled_dot_product_flash_attention_for_cpu": _attention(2),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention(5),
}


def _products(
    op: Any, name: str, given: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> int | None:
    if is_ours(op):
        products, shapes = OPS[name].products, [value.shape for value in given.values() if isinstance(value, Tensor)]
        return products(*shapes) if products else 0
    if name.removesuffix("_") in _OF_TORCH:
        return _OF_TORCH[name.removesuffix("_")](given, out)
    packet = op.overloadpacket
    if packet not in flop_registry and name.endswith("_"):  # torch has a formula for addmm, and none for addmm_
        packet = getattr(torch.ops.aten, name.removesuffix("_"), packet)
    formula = flop_registry.get(packet)
    return None if formula is None else formula(*args, **kwargs, out_val=out)


def _others(op: Any, name: str, given: dict[str, Any], out: Any) -> int | None:
    if is_ours(op):
        others = OPS[name].others
        return others(given, out) if callable(others) else others * max(t.numel() for t in tensors_of(given))
    bare = name.removesuffix("_").removeprefix("_foreach_")
    if bare in _OTHERS:
        return _OTHERS[bare](given, out)
    numels = [tensor.numel() for tensor in tensors_of(given)]
    if not numels or {name, bare} & (_MOVES | _FILLS | _NOTHING):  # such as arange
        return 0
    if name.startswith("_foreach_"):
        return _PER_ELEMENT.get(bare, 1) * sum(tensor.numel() for tensor in tensors_of(given["self"]))
    if bare in _PER_ELEMENT:
        return _PER_ELEMENT[bare] * max(numels)
    if torch.Tag.pointwise in op.tags:
        return sum(tensor.numel() for tensor in tensors_of(out))
    return max(numels) if torch.Tag.reduction in op.tags else None


#: What does not read one of the tensors that it is given: "self", which it fills, or makes another like it.
_FILLS = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_"}
_FILLS |= {"nll_loss_backward", "nll_loss2d_backward"}
_FILLS |= {"zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full"}

#: What moves nothing, though its schema does not say that it is a view.
_NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
_NOTHING |= {"unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"}

#: What moves elements, and computes nothing; in place or not.
_MOVES = {"copy", "_to_copy", "clone", "fill", "zero", "cat", "stack", "repeat", "roll", "flip", "tril", "triu"}
_MOVES |= {"index", "index_select", "gather", "scatter", "embedding", "select_backward", "slice_backward"}
_MOVES |= {"masked_fill", "masked_select", "masked_scatter", "nonzero", "_local_scalar_dense", "_linalg_check_errors"}
_MOVES |= {"constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"}
_MOVES |= {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "upsample_nearest1d", "upsample_nearest2d"}


def _picked(given: dict[str, Any], out: Any) -> int:
    """Of what is chosen from, only what was chosen is read."""
    return 2 * total(out) + total([given.get(name) for name in ("index", "indices")])


def _nll_loss(given: dict[str, Any], out: Any) -> int:
    return stored(given["target"]) + given["target"].numel() * given["self"].itemsize + total(out)


#: Bytes of the ops that leave out some of what they are given.
_MOVED: dict[str, Callable[[dict[str, Any], Any], int]] = {
    "gather": _picked,
    "index_select": _picked,
    "index": _picked,
    "embedding": _picked,
    "nll_loss_forward": _nll_loss,
    "nll_loss2d_forward": _nll_loss,
    "embedding_dense_backward": lambda of, out: stored(of["grad_output"]) + stored(of["indices"]) + stored(out),
}


def _bytes(op: Any, name: str, given: dict[str, Any], out: Any) -> int:
    if name in _NOTHING:
        return 0
    if moved := OPS[name].moved if is_ours(op) else _MOVED.get(name):
        return moved(given, out)
    schema = op._schema.arguments
    read = {argument.name: given[argument.name] for argument in schema if not argument.is_out}
    if name.replace("_foreach_", "") in _FILLS:
        del read["self"]
    if given.get("is_first_step"):  # momentum is only written
        read.pop("momentum_buffers", None), read.pop("momentum_buffer_list", None)
    if given.get("rates") is not None:  # of all steps, of which one reads its own
        read["rates"] = given["rates"][:1]
    mutable = [argument.name for argument in schema if argument.is_write]
    if "grad_scale" in given and given["grad_scale"] is None:  # torch's fused updates unscale gradients, if asked
        mutable.remove("grads")
    written = [given[name] for name in mutable]
    values = out if isinstance(out, tuple) else (out,)
    written += [value for value, of in zip(values, op._schema.returns, strict=False) if of.alias_info is None]
    return total(read) + total(written)
