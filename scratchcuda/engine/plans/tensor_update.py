"""The updates of the tensor plan by an optimizer with state: torch's fused ones, on as few tensors as there can be."""

from itertools import compress

import torch
from torch import Tensor

from scratchcuda.engine.network import Network
from scratchcuda.engine.optimizers import Optimizer


class Packing:
    """The parameters of a network one after another in a flat tensor, each product's as a matrix (n_in + 1, n_out).

    Matrices begin on cache lines. Where there is no bias, the last row is zeros.
    """

    def __init__(self, network: Network, line: int):
        self.shapes, self.starts, self.size = [], [], 0
        #: Of each of network.parameters, from where to where it is; with a bias goes the padding after it.
        self.spans: list[tuple[int, int]] = []
        for product in network.products:
            rows, columns = product.w.shape[0] + 1, product.w.shape[1]
            start, bias = self.size, self.size + (rows - 1) * columns
            self.size += -(-rows * columns // line) * line
            self.shapes.append((rows, columns))
            self.starts.append(start)
            self.spans += [(start, bias), (bias, self.size)][: len(product.named)]
        self.counts = [len(product.named) for product in network.products]

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """(n_in + 1, n_out) each."""
        places = zip(self.starts, self.shapes, strict=True)
        return [flat[start : start + rows * columns].view(rows, columns) for start, (rows, columns) in places]

    def places(self, flat: Tensor) -> list[Tensor]:
        """As network.parameters, weights (n_in, n_out) and bias (n_out,), the last row."""
        matrices = zip(self.matrices(flat), self.counts, strict=True)
        return [place for matrix, count in matrices for place in (matrix[:-1], matrix[-1])[:count]]

    def pieces(self, network: Network, optimizer: Optimizer) -> list[tuple[bool, list[slice]]]:
        """Whether they decay, and what of the flat tensor is trained, those that follow on one another as one."""
        found: dict[bool, list[slice]] = {}
        for name, (start, stop) in compress(zip(network.names, self.spans, strict=True), network.are_trained):
            of_kind = found.setdefault(optimizer.decays(name[-1]), [])
            if of_kind and of_kind[-1].stop == start:
                start = of_kind.pop().start
            of_kind.append(slice(start, stop))
        return list(found.items())


class Update:
    """The update of all parameters, bound to flat tensors.

    Attributes:
        gradients: of each product (n_in + 1, n_out), of the trained rows to be written before each call.
        lr: the learning rate of the next calls.
        optimizer: whose options and count of steps hold, within a fit.
    """

    optimizer: Optimizer | None
    #: For each kind of state where it is here, and where it is in the optimizer.
    pairs: list[tuple[list[Tensor], list[Tensor]]]

    def __init__(self, network: Network, packing: Packing, weights: Tensor, optimizer: Optimizer):
        self.lr, self.optimizer, self.pairs = 0.0, None, []
        gradient = torch.zeros_like(weights)
        states = [torch.zeros_like(weights) for _ in optimizer.kinds]
        self.gradients, self.states = packing.matrices(gradient), [packing.places(state) for state in states]
        self.step = torch.zeros((), dtype=torch.float32, device=weights.device)
        self.lists = [
            (decays, [[flat[piece] for piece in pieces] for flat in (weights, gradient, *states)])
            for decays, pieces in packing.pieces(network, optimizer)
        ]

    def begin(self, network: Network, optimizer: Optimizer) -> None:
        """Serve this optimizer."""
        self.optimizer, are_trained = optimizer, network.are_trained
        of_optimizer = optimizer.states([*compress(network.names, are_trained)])
        for state, own in zip(self.states, of_optimizer, strict=True):
            here = [*compress(state, are_trained)]
            self.pairs.append((here, [tensor.view_as(place) for tensor, place in zip(own, here, strict=True)]))

    def adopt(self) -> None:
        """Take the optimizer's state."""
        for here, own in self.pairs:
            torch._foreach_copy_(here, own)

    def publish(self) -> None:
        """Give it back."""
        for here, own in self.pairs:
            torch._foreach_copy_(own, here)

    def finish(self) -> None:
        """Forget it."""
        self.optimizer = None
        self.pairs.clear()

    def __call__(self) -> None:
        optimizer = self.optimizer
        assert optimizer is not None  # between begin and finish
        for decays, (params, grads, *states) in self.lists:
            decay = optimizer.weight_decay if decays else 0.0
            if optimizer.name == "sgd":
                torch._fused_sgd_(
                    params,
                    grads,
                    states[0],
                    weight_decay=decay,
                    momentum=optimizer.momentum,
                    lr=self.lr,
                    dampening=optimizer.dampening,
                    nesterov=optimizer.nesterov,
                    maximize=False,
                    is_first_step=optimizer.steps == 0,
                )
            else:
                self.step.fill_(optimizer.steps + 1)
                fused = torch._fused_adamw_ if optimizer.name == "adamw" else torch._fused_adam_
                fused(
                    params,
                    grads,
                    states[0],
                    states[1],
                    states[2] if optimizer.amsgrad else [],
                    [self.step] * len(params),
                    lr=self.lr,
                    beta1=optimizer.betas[0],
                    beta2=optimizer.betas[1],
                    weight_decay=decay,
                    eps=optimizer.eps,
                    amsgrad=optimizer.amsgrad,
                    maximize=False,
                )
        optimizer.steps += 1
