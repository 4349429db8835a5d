"""What the cases of all losses share."""

import torch
from cases import Case, rand
from oracle import added


def mean(terms, count):
    return added(terms.ravel())[0] / terms.dtype.type(count)


def theirs(function):
    def with_gradient(y_pred, y_true, *options):
        leaf = y_pred.clone().requires_grad_()
        loss = function(leaf, y_true, *options)
        loss.backward()
        return loss.detach(), leaf.grad

    return with_gradient


def step_of(with_gradient):
    def step(y_pred, y_true, losses, number, *options):
        loss, gradient = with_gradient(y_pred, y_true, *options)
        return gradient, torch.cat([losses[:number], loss[None], losses[number + 1 :]]), number + 1

    return step


def of_a_step(case, costs, refused):
    """The case of a loss in a training step."""

    def arguments(m):
        y_pred, y_true, *options = case.arguments(m)
        return y_pred, y_true, rand(5), torch.tensor(2), *options

    return Case(arguments=arguments, theirs=step_of(case.theirs), written=(2, 3), costs=costs, refused=refused)
