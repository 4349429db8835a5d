"""The ops as torch knows them: one table of schemas, and a namespace of torch.ops for each library of kernels.

``torch.ops.scratchcuda`` has the twins for tensors of every device, until ``_C`` adds the kernels for CUDA tensors.
Each build of the emulator has a namespace of its own. These raw ops are private: one without an autograd formula loses
gradients silently. The functions of :mod:`scratchcuda.ops` are differentiable.
"""

import torch
from torch.library import Library

from scratchcuda import costs, tensor_ops

SCHEMAS = {
    "dense": "(Tensor x, Tensor w, Tensor? b, str activation) -> Tensor",
    "dense_backward_input": '(Tensor delta, Tensor w, Tensor? a=None, str activation="none") -> Tensor',
    "dense_backward_weights": "(Tensor delta, Tensor x) -> (Tensor, Tensor)",
    "dense_update_": "(Tensor delta, Tensor x, Tensor(a!) w, Tensor(b!) b, float lr, float weight_decay) -> ()",
    "relu": "(Tensor z) -> Tensor",
    "sigmoid": "(Tensor z) -> Tensor",
    "tanh": "(Tensor z) -> Tensor",
    "softmax": "(Tensor z, int dim=-1) -> Tensor",
    "relu_backward": "(Tensor delta, Tensor a) -> Tensor",
    "sigmoid_backward": "(Tensor delta, Tensor a) -> Tensor",
    "tanh_backward": "(Tensor delta, Tensor a) -> Tensor",
    "softmax_backward": "(Tensor delta, Tensor a, int dim=-1) -> Tensor",
    "mse": "(Tensor y_pred, Tensor y_true) -> (Tensor, Tensor)",
    "cross_entropy": "(Tensor scores, Tensor y_true, int? ignore_index=None) -> (Tensor, Tensor)",
    "mse_step_": "(Tensor y_pred, Tensor y_true, Tensor(a!) losses, Tensor(b!) step) -> Tensor",
    "cross_entropy_step_": "(Tensor scores, Tensor y_true, Tensor(a!) losses, Tensor(b!) step) -> Tensor",
    "take_batch_": "(Tensor x, Tensor y, Tensor order, Tensor step, int batch_size, Tensor(a!) x_batch, "
    "Tensor(b!) y_batch) -> ()",
    "sgd_update_": "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, float lr, float weight_decay, "
    "float momentum, float dampening, bool nesterov, bool maximize, bool is_first_step) -> ()",
}

_libraries: dict[str, Library] = {}


def define(namespace: str) -> Library:
    """The ops of the table in ``torch.ops.<namespace>``, defined once. A twin computes shapes too: it is the fake."""
    if namespace not in _libraries:
        library = _libraries[namespace] = Library(namespace, "DEF")
        for name, schema in SCHEMAS.items():
            library.define(name + schema)
            torch.library.register_fake(f"{namespace}::{name}", getattr(tensor_ops, name), lib=library)
            costs.register(getattr(getattr(torch.ops, namespace), name))
    return _libraries[namespace]


for _name in SCHEMAS:
    define("scratchcuda").impl(_name, getattr(tensor_ops, _name), "CompositeExplicitAutograd")
