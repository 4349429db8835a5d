"""Modules whose forward gives what a Linear returns to an activation: the same forward, which lets one compute both.

Where its source says ``act(layer(x))``, or ``h = layer(x)`` and in the next statement ``act(h)``, and no other reads
that ``h``, nobody can see what lies between the two. A subclass of the module's class has a forward that says
``in_turn((layer, act), x)`` there, which decides at each call, by what the two are then; all else is as it was written.
"""

import ast
import contextlib
import copyreg
import functools
import linecache
import weakref
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from scratchcuda import _ranges
from scratchcuda.nn.layers import Linear, in_turn

_IN_TURN = "_scratchcuda_in_turn"
#: What the classes that :func:`fused` has made stand for.
ORIGINALS: dict[type[Module], type[Module]] = {}


class _Fusing:
    """The first base of what :func:`fused` makes."""

    def __init_subclass__(cls) -> None:
        """Not told to the other base, which may count what derives from it."""

    def __reduce_ex__(self, protocol: Any) -> Any:  # pickle finds the class of that name, which is the original
        reduced: Any = super().__reduce_ex__(protocol)
        if type(self) not in ORIGINALS or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        _, (kind, *args), *rest = reduced
        return _made, (ORIGINALS[kind], *args), *rest


@functools.cache
def fused(kind: type[Module]) -> type[Module] | None:
    """A class as this one, whose forward fuses; None where that is not written so."""
    written = kind.forward
    if (fusing := _fusing(written)) is None:
        return None

    @functools.wraps(written)
    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        return (fusing if kind.forward is written else kind.forward)(self, *args, **kwargs)

    names = {"forward": forward} | {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    made: type[Module] = type(kind)(kind.__name__, (_Fusing, kind), names)  # type: ignore[misc]
    ORIGINALS[made] = kind
    return made


def _made(kind: type[Module], *args: Any) -> Module:
    kind = fused(kind) or kind  # type: ignore[arg-type]
    return kind.__new__(kind, *args)


def _fusing(function: Any) -> Callable[..., Any] | None:
    """This function, with chains of calls made :func:`in_turn`; None if there are none, or its source is not there."""
    if type(function) is not FunctionType:
        return None
    code = function.__code__
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename, function.__globals__)))
    except SyntaxError:
        return None
    # Without other definitions, which take time. The imports matter to the compiler.
    tree.body = [part for part in tree.body if not isinstance(part, _DEFINITIONS) or _definition(part, code)]
    definition = next((found for part in tree.body if (found := _definition(part, code))), None)
    if definition is None or _compiled(tree, code) != code or not _Chains().rewrite(definition):
        return None
    definition.args.kwonlyargs.append(ast.arg(_IN_TURN))
    definition.args.kw_defaults.append(None)
    compiled = _compiled(ast.fix_missing_locations(tree), code)
    assert compiled is not None
    made = FunctionType(compiled, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = {**(function.__kwdefaults__ or {}), _IN_TURN: in_turn}
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


class _Chains(ast.NodeTransformer):
    """``f(g(x))`` to ``in_turn((g, f), x)``, after statements that are a chain too have become one."""

    found = False

    def rewrite(self, definition: ast.FunctionDef) -> bool:
        nodes = list(ast.walk(definition))
        self.names = [node.id for node in nodes if isinstance(node, ast.Name)]
        if not _READERS.isdisjoint(self.names):
            return False
        if not any(isinstance(node, _OTHERS) for node in nodes[1:]):
            for node in nodes:
                for block in ("body", "orelse"):
                    if isinstance(statements := getattr(node, block, None), list):
                        self._join(statements)
        self.generic_visit(definition)
        return self.found

    def _join(self, statements: list[ast.stmt]) -> None:
        """``h = g(x)`` and ``... = f(h)`` to ``... = f(g(x))``, where no other reads h."""
        for i in reversed(range(len(statements) - 1)):
            match statements[i : i + 2]:
                case [ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as value), second]:
                    uses = [node for node in ast.walk(second) if isinstance(node, ast.Name) and node.id == name]
                    again = isinstance(second, ast.Assign) and any(target in uses for target in second.targets)
                    is_last = again or isinstance(second, ast.Return)
                    alone = len(uses) == 1 + again if is_last else self.names.count(name) == 2
                    for call in _chain(getattr(second, "value", None))[-1:]:
                        if alone and call.args[0] in uses:
                            call.args[0] = value
                            del statements[i]

    def visit_Call(self, node: ast.Call) -> ast.AST:
        chain = _chain(node)
        if len(chain) < 2:
            return self.generic_visit(node)
        self.found = True
        functions = ast.Tuple([call.func for call in reversed(chain)], ast.Load())
        called = ast.Call(ast.Name(_IN_TURN, ast.Load()), [functions, self.visit(chain[-1].args[0])], [])
        return ast.copy_location(called, node)


#: Functions that may read the variables of who calls them.
_READERS = {"locals", "eval", "exec", "vars", "dir"}
#: What may read a variable otherwise than by what follows.
_OTHERS = (*_DEFINITIONS, ast.Lambda, ast.Global, ast.Nonlocal, ast.Try, ast.TryStar)


def _chain(node: ast.AST | None) -> list[ast.Call]:
    """The calls of one argument in ``f(g(x))``, from the last, which is called by a name or attribute."""
    calls = []
    while isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        if isinstance(node.args[0], ast.Starred) or any(isinstance(part, ast.Call) for part in ast.walk(node.func)):
            break
        calls.append(node)
        node = node.args[0]
    return calls


class Trace:
    """What one call of a model shows.

    Attributes:
        fused: each Linear that has computed an activation, and which.
        within: the modules that have called these.
        called: all modules that have been called.
        met: each Linear whose result was given to another module, and that module.
    """

    def __init__(self, model: Module, inputs: Any):
        self.fused: dict[Module, str] = {}
        self.within: set[Module] = set()
        self.called: set[Module] = set()
        self.met: dict[Module, Module] = {}
        self._running: list[Module] = []
        self._results: dict[int, tuple[weakref.ref[Tensor], Module]] = {}
        args, options = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            for module in model.modules():
                stack.callback(module.register_forward_pre_hook(self._before).remove)
                stack.callback(module.register_forward_hook(self._after, always_call=True).remove)
            torch.func.functional_call(model, buffers, args, options)

    @_ranges.looking_on
    def _before(self, module: Module, args: tuple[Any, ...]) -> None:
        if type(module) is Linear and len(args) == 2:
            self.fused[module] = args[1]
            self.within.update(self._running[-1:])
        elif args and (found := self._results.get(id(args[0]))) and found[0]() is args[0]:
            self.met[found[1]] = module
        self.called.add(module)
        self._running.append(module)

    @_ranges.looking_on
    def _after(self, module: Module, args: tuple[Any, ...], result: Any) -> None:
        self._running.pop()
        if type(module) is Linear and isinstance(result, Tensor):
            self._results[id(result)] = weakref.ref(result), module
