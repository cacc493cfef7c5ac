"""What reading costs, counted instead of timed: one unit per step and per byte touched.

``metered(name)`` imports a second copy of a room of gnats, under another package's name, in
which every call, slice, sum, ``in`` and turn of a loop first adds what it costs to ``meter.work``.
A copy of n bytes costs n, a search what it looks at, a look-up the key that is hashed. So the
count is the same on every machine and in every run, and sees work that Python does in C.

A regular expression is taken to be linear in its text: the meter cannot look into one.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from types import BuiltinMethodType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any

PACKAGE = "gnats_metered"

_SIZED = (bytes, bytearray, str, list, tuple)
_KEYED = (dict, set, frozenset)
# Builtins that look at no more than the outside of their arguments.
_SHALLOW = {len, isinstance, getattr, hasattr, type, map, zip, enumerate, iter, next, min, max}


def _size(value: object) -> int:
    return len(value) if isinstance(value, _SIZED) else 1


class Meter:
    """The names that a metered room calls, and the sum of what they saw."""

    def __init__(self) -> None:
        self.work = 0

    def of(self, job: Any) -> int:
        """The work of one call of *job*."""
        before = self.work
        job()
        return self.work - before

    def call(self, function: Any, /, *args: Any, **named: Any) -> Any:
        try:
            result = function(*args, **named)
        except BaseException:
            self.work += 1 + sum(map(_size, args))
            raise
        self.work += 1 + _cost(function, args, result)
        return result

    def made(self, value: Any) -> Any:
        """A slice, a sum, a formatted text: it was copied together."""
        self.work += 1 + _size(value)
        return value

    def within(self, member: Any, container: Any) -> bool:
        self.work += 1 + _size(member if isinstance(container, _KEYED) else container)
        return member in container

    def added(self, value: Any, more: Any) -> Any:
        """``value += more``: bytes and str are copied, bytearray and list grow."""
        self.work += 1 + _size(more)
        if isinstance(value, (bytes, str, tuple)):
            self.work += len(value)
        value += more
        return value

    def turns(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for one in iterable:
            self.work += 1
            yield one

    def turn(self) -> None:
        self.work += 1


def _cost(function: Any, args: tuple[Any, ...], result: Any) -> int:
    if isinstance(function, (FunctionType, MethodType)):
        # A room's own functions count for themselves, those of json and re by what they get.
        return 1 if function.__module__.startswith(PACKAGE) else sum(map(_size, args))
    if function in _SHALLOW:
        return 1
    if isinstance(function, MethodDescriptorType):  # bytes.split, not b"".split
        return _method_cost(function.__name__, args[0], args[1:], result)
    if isinstance(function, BuiltinMethodType) and not isinstance(function.__self__, ModuleType):
        return _method_cost(function.__name__, function.__self__, args, result)
    if isinstance(function, type) and function.__module__ != "builtins":
        return 1
    return sum(map(_size, args)) + _size(result)


def _method_cost(name: str, owner: Any, args: tuple[Any, ...], result: Any) -> int:
    if isinstance(owner, _KEYED):
        return sum(map(_size, args)) if args else 1
    if name == "append":
        return 1
    if name == "find":
        start = args[1] if len(args) > 1 else 0
        return (result if result >= 0 else len(owner)) - start
    if name in ("startswith", "endswith"):
        return sum(map(_size, args))
    if name == "join":
        return _size(result)
    if isinstance(owner, (bytes, bytearray, str)):
        pieces = sum(map(_size, result)) if isinstance(result, (list, tuple)) else _size(result)
        return len(owner) + pieces
    return sum(map(_size, args)) + _size(owner)


# -- the copy of a room ------------------------------------------------------------------


class _Instrument(ast.NodeTransformer):
    """Puts the meter into function bodies; everything around them stays as it is."""

    inside = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outside, self.inside = self.inside, True
        node.body = [self.visit(statement) for statement in node.body]
        self.inside = outside
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not self.inside or (isinstance(node.func, ast.Name) and node.func.id == "super"):
            return node
        return ast.Call(_meter("call"), [node.func, *node.args], node.keywords)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if not self.inside or not isinstance(node.ops[0], (ast.In, ast.NotIn)):
            return node
        found: ast.expr = ast.Call(_meter("within"), [node.left, node.comparators[0]], [])
        return found if isinstance(node.ops[0], ast.In) else ast.UnaryOp(ast.Not(), found)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if not self.inside or not isinstance(node.op, ast.Add):
            return node
        before = ast.parse(ast.unparse(node.target), mode="eval").body
        return ast.Assign([node.target], ast.Call(_meter("added"), [before, node.value], []))

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        if self.inside:
            node.iter = ast.Call(_meter("turns"), [node.iter], [])
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        if self.inside:
            node.body.insert(0, ast.Expr(ast.Call(_meter("turn"), [], [])))
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        if self.inside:
            node.iter = ast.Call(_meter("turns"), [node.iter], [])
        return node

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        node.value = self.visit(node.value)  # and not how it is formatted
        return node

    def _visit_made(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        return ast.Call(_meter("made"), [node], []) if self.inside else node

    visit_BinOp = _visit_made  # noqa: N815
    visit_JoinedStr = _visit_made  # noqa: N815

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        copies = isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load)
        return self._visit_made(node) if copies else self.generic_visit(node)


def _meter(name: str) -> ast.Attribute:
    return ast.Attribute(ast.Name("__meter__", ast.Load()), name, ast.Load())


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        tree = _Instrument().visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__meter__"] = meter
        super().exec_module(module)


class _Finder:
    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> Any:
        package, _, room = fullname.partition(".")
        if package != PACKAGE:
            return None
        gnats = importlib.util.find_spec("gnats")
        assert gnats is not None
        places = list(gnats.submodule_search_locations or ())
        if not room:
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = places
            return spec
        if room.startswith("_"):
            raise ImportError("nothing can be counted in a compiled twin: it is done without")
        file = f"{places[0]}/{room}.py"
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_Loader(fullname, file)
        )


meter = Meter()


def metered(room: str) -> ModuleType:
    """The metered copy of a room below gevent."""
    if not any(isinstance(one, type) and issubclass(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder)
    return importlib.import_module(f"{PACKAGE}.{room}")
