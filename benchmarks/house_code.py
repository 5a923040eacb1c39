"""Read the product code as a reader does: its files, layers and names, and a walk along its calls.

A reader starts at the method that is called after each block of telemetry (`START`) and follows
calls into functions, methods and classes of the product code, in source order, depth first. Each is
visited once, and at most `HOPS` files away from the start; calls within a file are free. Names are
resolved through imports, annotations and assignments; properties are not followed.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGES = ("trainenv", "agents", "planners", "worldmodel")
START = ("Branching", ("on_block_end", "respond"))  # the class, and names that the method may have
HOPS = 2

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, eq=False)
class Module:
    """A file of the product code.

    Attributes:
        path: Path from the root of the checkout, links followed.
        lines: Text, line by line.
        tree: Syntax tree.
    """

    path: str
    lines: list[str]
    tree: ast.Module

    @property
    def folder(self) -> str:
        """The path of the folder that holds the file."""
        return self.path.rpartition("/")[0]

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """Functions and classes by name."""
        return {node.name: node for node in self.tree.body if isinstance(node, Definition)}

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        """Imported names, lazy ones included: module, and name in it or ""."""
        found: dict[str, tuple[str, str]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    found[alias.asname or alias.name] = (node.module, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    found[name] = (alias.name if alias.asname else name, "")
        return found

    @property
    def exported(self) -> list[ast.expr]:
        """The elements of `__all__`."""
        for node in self.tree.body:
            for target, value, _ in bindings(node):
                if ast.unparse(target) == "__all__" and isinstance(value, ast.List | ast.Tuple):
                    return value.elts
        return []


@dataclass(frozen=True, kw_only=True)
class Place:
    """A function or class.

    Attributes:
        module: File that defines it.
        node: Its definition.
        owner: Class of a method; None for functions and classes.
    """

    module: Module
    node: Definition
    owner: Place | None = None

    @property
    def name(self) -> str:
        """The name, after that of the class if it is a method."""
        if self.owner is None:
            return self.node.name
        return f"{self.owner.node.name}.{self.node.name}"

    @property
    def at(self) -> str:
        """The file and the line."""
        return f"{self.module.path}:{self.node.lineno}"


class Code:
    """The product code of a checkout.

    Attributes:
        root: Folder of the checkout.
        modules: Files by path, links followed; each once.
        layers: Numbers of layers by path without suffix, 1 the lowest; empty without a contract.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.modules: dict[str, Module] = {}
        for package in PACKAGES:
            for file in sorted((self.root / package).rglob("*.py")):
                path = self._path(file)
                text = file.read_text(encoding="utf-8")
                self.modules[path] = Module(path, text.splitlines(), ast.parse(text))
        self.layers = self._layers()

    def _path(self, file: Path) -> str:
        return file.resolve().relative_to(self.root).as_posix()

    def _layers(self) -> dict[str, int]:
        settings = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        found: dict[str, int] = {}
        for contract in settings["tool"]["importlinter"]["contracts"]:
            if contract["type"] == "layers":
                for number, layer in enumerate(reversed(contract["layers"]), start=1):
                    for name in re.findall(r"[\w.]+", layer):
                        for container in contract.get("containers", [""]):
                            full = f"{container}.{name}".lstrip(".")
                            found[self._path(self.root / full.replace(".", "/"))] = number
        return found

    def layer(self, path: str) -> int | None:
        """Return the layer of a file, or None."""
        place = Path(path).with_suffix("")
        numbers = (self.layers.get(one.as_posix()) for one in (place, *place.parents))
        return next((number for number in numbers if number is not None), None)

    def climbs(self, path: str, to: str) -> bool:
        """Tell whether the second of two files is in a higher layer."""
        here, there = self.layer(path), self.layer(to)
        return here is not None and there is not None and here < there

    def module(self, name: str) -> Module | None:
        """Return the file of a dotted name, or None if it is not ours."""
        base = self.root / name.replace(".", "/")
        for file in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if file.is_file() and self._path(file) in self.modules:
                return self.modules[self._path(file)]
        return None

    def find(self, module: Module, name: str) -> Module | Place | None:
        """Return the definition or file of a name in a module, through imports."""
        if name in module.definitions:
            return Place(module=module, node=module.definitions[name])
        if name not in module.imports:
            return None
        source, inner = module.imports[name]
        if found := self.module(f"{source}.{inner}" if inner else source):
            return found
        origin = self.module(source)
        return self.find(origin, inner) if origin else None


# ── types, as far as they are easy to tell ──────────────────────────────────────────────────────


class Resolver:
    """Finds the definitions that calls lead to.

    Attributes:
        code: Code that the calls are part of.
    """

    def __init__(self, code: Code) -> None:
        self.code = code
        self._open: set[ast.expr] = set()  # guards against names that are assigned in a circle

    def callees(self, place: Place) -> Iterator[Place]:
        """Yield what a function calls, in source order; after a class, its constructor."""
        calls = [node for node in ast.walk(place.node) if isinstance(node, ast.Call)]
        calls.sort(key=lambda call: (call.func.end_lineno or 0, call.func.end_col_offset or 0))
        for call in calls:
            callee = self._callee(call.func, place)
            if callee is not None:
                yield callee
                if isinstance(callee.node, ast.ClassDef):
                    init = self.method(callee, "__init__") or self.method(callee, "__post_init__")
                    if init is not None:
                        yield init

    def method(self, owner: Place, name: str) -> Place | None:
        """Return a method of a class or of its bases."""
        for one in self._lineage(owner):
            for node in one.node.body:
                if isinstance(node, Function) and node.name == name:
                    return Place(module=one.module, node=node, owner=one)
        return None

    def _lineage(self, owner: Place) -> Iterator[Place]:
        yield owner
        assert isinstance(owner.node, ast.ClassDef)
        for expression in owner.node.bases:
            base = self._class(owner.module, expression)
            if base is not None:
                yield from self._lineage(base)

    def _callee(self, called: ast.expr, place: Place) -> Place | None:
        if isinstance(called, ast.Attribute):
            owner = self._type(called.value, place)
            if owner is not None:
                return self.method(owner, called.attr)
        found = self._static(place.module, called)
        return found if isinstance(found, Place) else None

    def _static(self, module: Module, expression: ast.expr) -> Module | Place | None:
        """Resolve a dotted name or an annotation without regard to local variables."""
        match expression:
            case ast.Name(id=name):
                return self.code.find(module, name)
            case ast.Attribute(value=value, attr=name):
                match self._static(module, value):
                    case Module() as found:
                        return self.code.find(found, name)
                    case Place(node=ast.ClassDef()) as owner:
                        return self.method(owner, name)
            case ast.BinOp(left=left, right=right):  # X | None
                return self._static(module, left) or self._static(module, right)
            case ast.Subscript(value=value):
                return self._static(module, value)
        return None

    def _class(self, module: Module, annotation: ast.expr | None) -> Place | None:
        if annotation is not None:
            match self._static(module, annotation):
                case Place(node=ast.ClassDef()) as found:
                    return found
        return None

    def _type(self, value: ast.expr | None, place: Place) -> Place | None:
        """Return the class of a value where it is easy to tell."""
        if value is None or value in self._open:
            return None
        self._open.add(value)
        try:
            match value:
                case ast.Name(id=name):
                    return self._local(place, name)
                case ast.Attribute(value=inner, attr=name):
                    owner = self._type(inner, place)
                    return self._attribute(owner, name) if owner else None
                case ast.Call(func=called):
                    callee = self._callee(called, place)
                    if callee is None or isinstance(callee.node, ast.ClassDef):
                        return callee
                    return self._returned(callee)
                case ast.BoolOp(values=values):
                    types = (self._type(one, place) for one in values)
                    return next(filter(None, types), None)
                case ast.IfExp(body=body, orelse=orelse):
                    return self._type(body, place) or self._type(orelse, place)
            return None
        finally:
            self._open.discard(value)

    def _returned(self, callee: Place) -> Place | None:
        assert isinstance(callee.node, Function)
        returns = callee.node.returns
        if isinstance(returns, ast.Name) and returns.id == "Self":
            return callee.owner
        return self._class(callee.module, returns)

    def _local(self, place: Place, name: str) -> Place | None:
        """Return the class of a parameter or of a variable of a function."""
        if isinstance(place.node, Function):
            arguments = place.node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            for argument in named:
                if argument.arg == name and argument.annotation is not None:
                    return self._class(place.module, argument.annotation)
            if place.owner is not None and named and named[0].arg == name:  # self or cls
                return place.owner
        return self._assigned(place, name)

    def _attribute(self, owner: Place, name: str) -> Place | None:
        """Return the class of an attribute or property, by its annotation or its first value."""
        for one in self._lineage(owner):
            for node in one.node.body:
                if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
                    return self._class(one.module, node.annotation)
                if isinstance(node, Function):
                    method = Place(module=one.module, node=node, owner=one)
                    if node.name == name and node.decorator_list:
                        return self._returned(method)
                    if found := self._assigned(method, f"self.{name}"):
                        return found
        return None

    def _assigned(self, place: Place, target: str) -> Place | None:
        for node in ast.walk(place.node):
            for name, value, annotation in bindings(node):
                if ast.unparse(name) == target:
                    found = self._class(place.module, annotation) or self._type(value, place)
                    if found is not None:
                        return found
        return None


def bindings(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None, ast.expr | None]]:
    """Yield target, value and annotation of what a node assigns."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            yield from ((name, value, None) for name, value in zip(names, values, strict=False))
        case ast.Assign(targets=targets, value=value):
            yield from ((name, value, None) for name in targets)
        case ast.AnnAssign(target=target, value=value, annotation=annotation):
            yield target, value, annotation
        case ast.NamedExpr(target=target, value=value):
            yield target, value, None
        case ast.withitem(context_expr=value, optional_vars=ast.expr() as target):
            yield target, value, None


def _start(code: Code, resolver: Resolver) -> Place:
    name, methods = START
    for module in code.modules.values():
        if name in module.definitions:
            owner = Place(module=module, node=module.definitions[name])
            for method in methods:
                if found := resolver.method(owner, method):
                    return found
    sys.exit(f"expected a class {name} with a method {' or '.join(methods)}, found none")


def walk(code: Code, hops: int = HOPS) -> list[Place]:
    """Return the functions and classes that the reader visits, in order; see the module."""
    resolver = Resolver(code)
    start = _start(code, resolver)
    stops = [start]
    seen = {start.node}

    def visit(place: Place, left: int) -> None:
        for callee in resolver.callees(place):
            after = left - (callee.module is not place.module)
            if after >= 0 and callee.node not in seen:
                seen.add(callee.node)
                stops.append(callee)
                visit(callee, after)

    visit(start, hops)
    return stops
