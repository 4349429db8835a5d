"""Networks compiled, exported, traced, or captured in a CUDA graph."""

import warnings

import pytest
import torch
import torch.fx
from drop_in import (
    CLASSES,
    CROSS_ENTROPY,
    DENSE,
    X,
    as_torch,
    assert_as_torch,
    assert_same,
    loss_and_gradients,
    network,
    rand,
)

import scratchcuda


@as_torch(*DENSE, "tanh", "tanh_backward", "mse_value", "mse_backward")
def test_compiled(nn, sgd):
    net, loss_f, y = network(nn), nn.MSELoss(), rand(6, 3)
    step = torch.compile(lambda x: loss_f(net(x), y), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        first = step(X)
    return [first, torch.autograd.grad(step(X), list(net.parameters()))]


@as_torch(*(f"{loss}_{of}" for loss in ("huber", "binary_cross_entropy_with_logits") for of in ("value", "backward")))
def test_compiled_losses(nn, sgd):
    """With a parameter, weights, and in turn without."""
    found, y, w = [], rand(6, 5).sigmoid(), rand(5).abs()
    for loss in (
        nn.HuberLoss(delta=0.3),
        nn.BCEWithLogitsLoss(w, reduction="sum", pos_weight=w.flip(0)),
        nn.BCEWithLogitsLoss(),
    ):
        leaf = X.clone().requires_grad_()
        value = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf, y)
        found.append([value, torch.autograd.grad(value, leaf)])
    return found


@as_torch(*DENSE, "leaky_relu", "leaky_relu_backward")
def test_compiled_with_several_parameters(nn, sgd):
    """The default, which the dispatcher leaves out, and others, of which the compiler makes a symbol."""
    found = []
    for slope in (0.01, 0.1, 0.2):
        layers = [nn.Linear(5, 5), nn.LeakyReLU(slope), nn.Linear(5, 5)]
        net = nn.Sequential(*layers, nn.LeakyReLU(slope), nn.LeakyReLU(slope)).double()
        scratchcuda.nn.convert(net, fuse=True)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        found.append(torch.autograd.grad(compiled(X).sum(), list(net.parameters())))
    return found


@as_torch(*DENSE, "tanh", "tanh_backward", *CROSS_ENTROPY, "sgd_update_")
def test_compiled_by_inductor(nn, sgd):
    net, loss_f, losses = network(nn), nn.CrossEntropyLoss(), []
    optimizer = sgd(net.parameters(), 0.1, 0.9)
    loss_of = torch.compile(lambda: loss_f(net(X), CLASSES % 3), fullgraph=True)
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(loss_of())
        losses[-1].backward()
        optimizer.step()
    return losses


@as_torch(*CROSS_ENTROPY)
def test_compiled_losses_with_options(nn, sgd):
    loss_f, y = nn.CrossEntropyLoss(rand(5).abs(), label_smoothing=0.1, reduction="none"), CLASSES.view(2, 3)
    compiled = torch.compile(lambda x: loss_f(x, y).square().sum(), fullgraph=True, backend="aot_eager")
    leaf = X.reshape(2, 3, 5).mT.requires_grad_()
    return torch.autograd.grad(compiled(leaf), leaf)


@as_torch(*DENSE, "tanh", "tanh_backward")
def test_compiled_with_autocast_and_sizes(nn, sgd):
    net = network(nn).float()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    with torch.autocast(X.device.type, torch.bfloat16):
        for m in (2, 5, 6):
            results.append(loss_and_gradients(compiled, X[:m].float()))
    return results


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_compiled_optimizer(name, backend):
    def behaviour(nn, kind):
        net = network(nn)
        optimizer = kind(net.parameters(), 0.1, **({"momentum": 0.9} if name == "SGD" else {}))
        step = torch.compile(optimizer.step, backend="aot_eager")
        for _ in range(3):
            for p in net.parameters():
                p.grad = p.detach().clone()
            step()
        return net.state_dict()

    assert_as_torch(behaviour, (), backend, name)


@as_torch()
def test_exported(nn, sgd):
    """A program of torch's own operations, whatever the backend."""
    net, results = network(nn), []
    for strict in (False, True):
        program = torch.export.export(net, (X,), dynamic_shapes=({0: torch.export.Dim("m")},), strict=strict)
        targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        results += [program.module()(X[:3]), [target.split(".")[0] for target in targets if "aten" not in target]]
    return results


@as_torch("dense", "tanh")
def test_onnx_exported(nn, sgd):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    net = network(nn).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter says of itself
        program = torch.onnx.export(net, (X.float(),), dynamo=True, verbose=False, input_names=["x"])
    y = reference.ReferenceEvaluator(program.model_proto).run(None, {"x": X.float().cpu().numpy()})[0]
    return [torch.from_numpy(y).to(X.device), net(X.float()).detach()]


@as_torch("dense", "tanh")
def test_traced_by_jit(nn, sgd):
    """Of torch's operations; beside it torch runs the network as it is, to compare."""
    traced = torch.jit.trace(network(nn), (X,))
    return [traced(X[:2]), "::dense" in str(traced.inlined_graph)]


@as_torch()
def test_traced(nn, sgd):
    """By torch.fx, whose proxies are no tensors."""
    net = network(nn)
    return torch.fx.GraphModule(net, torch.fx.Tracer().trace(net))(X)


@as_torch("dense", "tanh")
def test_forward_derivatives_of_what_is_compiled(nn, sgd):
    net = torch.compile(network(nn).requires_grad_(False), backend="eager")
    with torch.autograd.forward_ad.dual_level():
        dual = net(torch.autograd.forward_ad.make_dual(X.clone(), X.flip(0)))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent.clone()
    return [tangent, net(X)]


@pytest.mark.backends("kernels")
def test_a_step_in_a_cuda_graph():
    """Captured whole, as torch's documents do, and replayed on other data."""
    nets, found = [network(nn) for nn in (torch.nn, scratchcuda.nn)], []
    nets[1].load_state_dict(nets[0].state_dict())
    sides = zip(nets, (torch.nn, scratchcuda.nn), (torch.optim.SGD, scratchcuda.optim.SGD), strict=True)
    for net, nn, sgd in sides:
        optimizer, loss_f = sgd(net.parameters(), 0.1, momentum=0.9), nn.CrossEntropyLoss()
        x, y = X.clone(), CLASSES % 3

        def step(net=net, optimizer=optimizer, loss_f=loss_f, x=x, y=y):
            optimizer.zero_grad()
            loss = loss_f(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            loss = step()
        for shift in range(3):
            x.copy_(X.roll(shift, 0))
            graph.replay()
            found.append(loss.item())
    assert_same(torch.tensor(found[3:]), torch.tensor(found[:3]))
    assert_same(nets[1].state_dict(), nets[0].state_dict())
