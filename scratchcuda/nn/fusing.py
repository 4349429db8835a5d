"""Modules whose forward gives what a Linear returns to an activation: the same forward, which lets one compute both.

Where its source says ``act(layer(x))``, or ``h = layer(x)`` and in the next statement ``act(h)``, and no other reads
that ``h``, nobody can see what lies between the two. A subclass of the module's class has a forward that makes these
calls by :func:`call`, which decides each time, by what the two are then; all else is as it was written.
"""

import ast
import contextlib
import copy
import inspect
import itertools
import linecache
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Sequential

from scratchcuda import _ranges
from scratchcuda.nn.layers import LAYERS, FusedSequential, computed_with, in_turn, is_watched
from scratchcuda.nn.subclasses import subclass


class Carried(NamedTuple):
    """What a Linear has given to the next statement: its result, and the function to call on it, if it still is."""

    value: Any
    functions: tuple[Any, ...]


def call(
    functions: Sequence[Any],
    input: Any,
    first: Callable[[], Any] | None = None,
    following: Callable[[], Any] | None = None,
) -> Any:
    """``f(g(input))``, of functions (f, g).

    Args:
        functions: the last is called first, as they are written.
        input: of this statement, or what a Linear in the one before it has :class:`Carried`.
        first: gives the function to call before these, unless that is carried. It was to be looked up after the call in
            the statement before.
        following: gives the function that the next statement calls on the result. It is asked early if there is a
            Linear before it, which leaves all attributes as they are.
    """
    pending = [*reversed(functions)]
    if type(input) is Carried:
        input, carried = input
        pending = [*carried, *pending]
    elif first is not None:
        pending = [first(), *pending]
    if following is None or not pending or type(pending[-1]) not in LAYERS or is_watched(pending[-1]):
        return in_turn(pending, input)
    *others, layer = pending
    input, function = in_turn(others, input), following()
    if activation := computed_with(layer, function, input):
        return Carried(layer(input, *activation), ())
    return Carried(layer(input), (function,))


_CALL = "_scratchcuda_call"


def fused(kind: type[Module]) -> type[Module] | None:
    """A class as this one, whose forward fuses; None where that is not written so."""
    return subclass(kind, fused, _names)


def _names(kind: type[Module]) -> dict[str, Any] | None:
    written = inspect.getattr_static(kind, "forward")
    # A Sequential itself becomes a FusedSequential, or else is to stay.
    by_turns = written is Sequential.forward and getattr(kind, "__iter__", None) is Sequential.__iter__
    fusing: Any = FusedSequential.forward if by_turns and kind is not Sequential else _fusing(written)
    if fusing is None:
        return None
    code, defaults, by_name = written.__code__, written.__defaults__, written.__kwdefaults__

    @wraps(written)
    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        # A patch, or what reloads sources, which changes the function itself; torch.compile notices both.
        is_same = kind.forward is written and (
            torch.compiler.is_compiling()
            or (written.__code__ is code and written.__defaults__ is defaults and written.__kwdefaults__ is by_name)
        )
        return (fusing if is_same else kind.forward)(self, *args, **kwargs)

    # By its code torch.compile keeps what it has compiled, of eight classes.
    forward.__code__ = forward.__code__.replace()  # type: ignore[attr-defined]
    return {"forward": forward}


def _fusing(function: Any) -> Callable[..., Any] | None:
    """This function, its calls made by :func:`call`; None if no two are one after another, or its source is not there.

    Nor if it asks for its class, which would be another.
    """
    if type(function) is not FunctionType or {"type", "__class__"} & {*function.__code__.co_names}:
        return None
    code = function.__code__
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename, function.__globals__)))
        # Without other definitions, which take time. The imports matter to the compiler.
        tree.body = [part for part in tree.body if not isinstance(part, _DEFINITIONS) or _definition(part, code)]
        definition = next((found for part in tree.body if (found := _definition(part, code))), None)
        if definition is None or _compiled(tree, code) != code or not _Calls().rewrite(definition):
            return None
    except SyntaxError:  # as of an await outside of functions, which notebooks allow
        return None
    definition.args.kwonlyargs.append(ast.arg(_CALL))
    definition.args.kw_defaults.append(None)
    compiled = _compiled(ast.fix_missing_locations(tree), code)
    assert compiled is not None
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in compiled.co_freevars)
    made = FunctionType(compiled, function.__globals__, code.co_name, function.__defaults__, closure)
    made.__kwdefaults__ = {**(function.__kwdefaults__ or {}), _CALL: call}
    return made


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _definition(part: ast.AST, code: CodeType) -> ast.FunctionDef | None:
    for node in ast.walk(part):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            lines = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
            if min(lines) == code.co_firstlineno:
                return node
    return None


def _compiled(tree: ast.Module, like: CodeType) -> CodeType | None:
    """The code in this module that begins where this code does."""
    pending = [compile(tree, like.co_filename, "exec", dont_inherit=True)]
    for code in pending:
        pending += (inner for inner in code.co_consts if isinstance(inner, CodeType))
        if (code.co_name, code.co_firstlineno) == (like.co_name, like.co_firstlineno):
            return code
    return None


class _Calls(ast.NodeTransformer):
    """Makes calls of one argument, in one another or in statements one after another, by :func:`call`."""

    def rewrite(self, definition: ast.FunctionDef) -> bool:
        """Whether there are any."""
        nodes = list(ast.walk(definition))
        self.names = [node.id for node in nodes if isinstance(node, ast.Name)]
        self.first: set[ast.Call] = set()
        self.following: dict[ast.Call, ast.expr] = {}
        self.found = False
        if not _READERS.isdisjoint(self.names):
            return False
        if not any(isinstance(node, _OTHERS) for node in nodes[1:]):
            for node in nodes:
                for block in ("body", "orelse"):
                    if isinstance(statements := getattr(node, block, None), list):
                        self._link(statements)
        self.generic_visit(definition)
        return self.found

    def _link(self, statements: list[ast.stmt]) -> None:
        """``h = g(x)`` and ``... = f(h)`` one after another, where no other reads h."""
        for each, second in itertools.pairwise(statements):
            match each, second:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as value), (
                    ast.Assign(targets=[_]) | ast.Return() | ast.Expr()
                ):
                    uses = [node for node in ast.walk(second) if isinstance(node, ast.Name) and node.id == name]
                    again = isinstance(second, ast.Assign) and second.targets[0] in uses
                    is_last = again or isinstance(second, ast.Return)
                    alone = len(uses) == 1 + again if is_last else self.names.count(name) == 2
                    chain = _chain(second.value)
                    if alone and chain and chain[-1].args[0] in uses and value in _chain(value):
                        self.first.add(chain[-1])
                        self.following[value] = chain[-1].func

    def visit_Call(self, node: ast.Call) -> ast.AST:
        chain = _chain(node)
        by_name = {}
        if chain and chain[-1] in self.first:
            by_name["first"] = chain.pop().func
        if node in self.following:
            by_name["following"] = self.following[node]
        if len(chain) < 2 and not by_name:
            return self.generic_visit(node)
        self.found = True
        innermost = _chain(node)[-1].args[0]
        functions = ast.Tuple([each.func for each in chain], ast.Load())
        nothing = ast.arguments([], [], None, [], [], None, [])
        keywords = [ast.keyword(name, ast.Lambda(nothing, copy.deepcopy(of))) for name, of in by_name.items()]
        called = ast.Call(ast.Name(_CALL, ast.Load()), [functions, self.visit(innermost)], keywords)
        return ast.copy_location(called, node)


#: Functions that may read the variables of who calls them.
_READERS = {"locals", "eval", "exec", "vars", "dir"}
#: What may read a variable otherwise than by what follows, or after what has failed.
_OTHERS = (*_DEFINITIONS, ast.Lambda, ast.GeneratorExp, ast.Global, ast.Nonlocal, ast.Try, ast.TryStar, ast.With)
#: What would be another within a lambda, or take another turn.
_WITHIN = (ast.Call, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)


def _chain(node: ast.AST | None) -> list[ast.Call]:
    """The calls of one argument in ``f(g(x))``, from the last, which is called by a name or attribute."""
    calls = []
    while isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        if isinstance(node.args[0], ast.Starred) or any(isinstance(part, _WITHIN) for part in ast.walk(node.func)):
            break
        calls.append(node)
        node = node.args[0]
    return calls


class Trace:
    """What one call of a model shows.

    Attributes:
        fused: each Linear that has computed an activation, and which.
        called: all modules that have been called.
        met: each Linear whose result was given to another module, and that module.
    """

    def __init__(self, model: Module, inputs: Any):
        self.fused: dict[Module, str] = {}
        self.called: set[Module] = set()
        self.met: dict[Module, Module] = {}
        self._results: dict[int, tuple[weakref.ref[Tensor], Module]] = {}
        args, options = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            for module in model.modules():
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    continue
                stack.callback(module._buffers.update, dict(module._buffers))
                stack.callback(module._buffers.clear)
                stack.callback(module.register_forward_pre_hook(self._before).remove)
                stack.callback(module.register_forward_hook(self._after, always_call=True).remove)
            torch.func.functional_call(model, buffers, args, options)

    @_ranges.looking_on
    def _before(self, module: Module, args: tuple[Any, ...]) -> None:
        if type(module) in LAYERS and len(args) == 3:
            self.fused[module] = args[1]
        elif args and (found := self._results.get(id(args[0]))) and found[0]() is args[0]:
            self.met[found[1]] = module
        self.called.add(module)

    @_ranges.looking_on
    def _after(self, module: Module, args: tuple[Any, ...], result: Any) -> None:
        if type(module) in LAYERS and isinstance(result, Tensor):
            self._results[id(result)] = weakref.ref(result), module
