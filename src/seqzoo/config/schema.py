"""One declaration of every key: the annotations of the constructor that takes it.

    @checked(heads_divide_width)
    def __init__(self, *, dim: Count, n_heads: Count, position: Literal["rope", "none"]) -> None:

`checked` has the constructor refuse wrong values. `declared` reads the same annotations and rules
from the source file, without importing it, so that the command line refuses them before torch is
loaded. A rule is a function that sees several keys at once.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args, get_origin

from seqzoo.config import files
from seqzoo.config.values import check_value, shown
from seqzoo.errors import UserError, nearest

P = ParamSpec("P")
R = TypeVar("R")
Rule = Callable[[Mapping[str, Any], str], None]  # (keys, prefix of their names); raises UserError


@dataclass(frozen=True)
class Declaration:
    """What a constructor declares: the annotation of each key, and the rules among them."""

    keys: dict[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    def __or__(self, other: Declaration) -> Declaration:
        """Both; where both have a key, the one on the left."""
        rules = tuple(dict.fromkeys((*self.rules, *other.rules)))
        return Declaration({**other.keys, **self.keys}, rules)


def check(declaration: Declaration, values: Mapping[str, Any], where: str = "") -> None:
    """Refuse a value of the wrong type or out of its range, then what a rule refuses.

    Args:
        where: begins the names of the keys in a message, such as `model.`.

    Raises:
        UserError: one line naming the key, the value and what is allowed.
    """
    for key, value in values.items():
        if key in declaration.keys:
            check_value(f"{where}{key}", value, declaration.keys[key])
    for rule in declaration.rules:
        rule(values, where)


def check_keys(values: Iterable[str], known: Iterable[str], where: str = "") -> None:
    """Refuse a key that is not known.

    Raises:
        UserError: the key, and the nearest one that is known.
    """
    known = set(known)
    for key in values:
        if key not in known:
            raise UserError(f"{where}{key}: no such key{nearest(key, known - {'name'})}")


def check_complete(known: Mapping[str, Any], values: Iterable[str], where: str = "") -> None:
    """Refuse a section without one of the keys in the file of its choice.

    Args:
        known: the keys of that file and their values.

    Raises:
        UserError: the key, and the file's value.
    """
    given = set(values)
    for key, default in known.items():
        if key not in given:
            raise UserError(f"{where}{key}: missing: give it, such as {shown(default)}")


def whole_section(name: str, path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A section of a configuration, completed from its group's file `default.yaml` and checked.

    Args:
        path: what declares its keys, as `declared` takes it.

    Raises:
        UserError: as `check_keys` and `check`.
    """
    declaration = declared(path)
    section = {**files.defaults(name, "default"), **(config.get(name) or {})}
    check_keys(section, declaration.keys, f"{name}.")
    check(declaration, section, f"{name}.")
    return section


def checked(*rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a constructor or function check its keyword arguments by their annotations, then by
    rules.

    On a dataclass it wraps the constructor that the dataclass has. Annotations that no
    configuration file could hold a value of, such as modules, are left alone.
    """

    def decorate(target: Any) -> Any:
        function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]

        @functools.wraps(function)
        def call(*args: Any, **keys: Any) -> Any:
            check(_runtime(target, function, rules), keys)
            return function(*args, **keys)

        call.__seqzoo_rules__ = rules  # type: ignore[attr-defined]
        if isinstance(target, type):
            target.__init__ = call  # type: ignore[misc]
            return target
        return call

    return decorate


@functools.cache
def _runtime(target: Any, function: Any, rules: tuple[Rule, ...]) -> Declaration:
    """The declaration of a function that is loaded already."""
    annotations = (target if isinstance(target, type) else function).__annotations__
    return _declaration(annotations, vars(sys.modules[target.__module__]), rules)


def _declaration(
    annotations: Mapping[str, Any], names: Mapping[str, Any], rules: Iterable[Rule]
) -> Declaration:
    """The annotations, given as objects or as text, that a configuration can hold a value of."""
    found = {}
    for key, annotation in annotations.items():
        with suppress(NameError, AttributeError):  # a type that no configuration holds
            value = eval(annotation, {}, names) if isinstance(annotation, str) else annotation
            if _is_value(value):
                found[key] = value
    return Declaration(found, tuple(rules))


def _is_value(annotation: Any) -> bool:
    """Whether a configuration file can hold a value of this type."""
    origin = get_origin(annotation)
    if origin is typing.Literal:
        return True
    if origin is typing.Annotated:
        return _is_value(get_args(annotation)[0])
    if origin is not None:
        return all(part is ... or _is_value(part) for part in get_args(annotation))
    return annotation in (int, float, bool, str, type(None), None)


# ---- reading a declaration from source


@functools.cache
def declared(path: str) -> Declaration:
    """The declaration of `package.module:name`, a class or a function, without importing it.

    Raises:
        UserError: no such module, or nothing of that name in it.
    """
    module, _, name = path.partition(":")
    loaded = getattr(sys.modules.get(module), name, None)
    if loaded is not None and not _file(module):  # made in a notebook
        function: Any = loaded.__init__ if isinstance(loaded, type) else loaded  # type: ignore[misc]
        return _runtime(loaded, function, getattr(function, "__seqzoo_rules__", ()))
    return _Source(module).declaration(name)


def load(path: str) -> Any:
    """The object `package.module:name` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def accepted(target: Any) -> set[str]:
    """The names of the parameters of a constructor or function, or of the one at an import path."""
    return set(inspect.signature(load(target) if isinstance(target, str) else target).parameters)


def _file(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


class _Source(dict[str, Any]):
    """The names that a module's source text binds; the value of each is found when it is read."""

    def __init__(self, module: str) -> None:
        super().__init__()
        file = _file(module)
        if file is None:
            raise UserError(f"{module}: no such module: install its package, or correct the name")
        self.module = module
        body = ast.parse(file.read_text(encoding="utf-8")).body
        self.definitions = {
            node.name: node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        }
        self.assigned = {
            target.id: ast.unparse(node.value)
            for node in body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in body
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            for alias in node.names
        }

    def __missing__(self, name: str) -> Any:
        if name in self.assigned:
            return eval(self.assigned[name], {}, self)
        module, original = self.imported[name]
        package, _, rest = module.partition(".")
        if package in _FOREIGN or (package == "seqzoo" and not rest.startswith("config")):
            raise KeyError(name)
        loaded = import_module(module)
        if hasattr(loaded, original):
            return getattr(loaded, original)
        return import_module(f"{module}.{original}")  # a module in a package

    def declaration(self, name: str) -> Declaration:
        node = self.definitions.get(name)
        if node is None:
            if name in self.imported:
                module, original = self.imported[name]
                return _Source(module).declaration(original)
            raise UserError(f"{self.module}:{name}: nothing of that name in the module")
        if isinstance(node, ast.FunctionDef):
            return self._of_function(node)
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                return self._of_function(inner)
        fields = [inner for inner in node.body if isinstance(inner, ast.AnnAssign)]
        texts = {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}
        own = _declaration(texts, self, self._rules(node))
        for base in node.bases:
            if isinstance(base, ast.Name) and (base.id in {**self.definitions, **self.imported}):
                if self.imported.get(base.id, ("", ""))[0].partition(".")[0] not in _FOREIGN:
                    own = own | self.declaration(base.id)
        return own

    def _of_function(self, node: ast.FunctionDef) -> Declaration:
        texts = {a.arg: ast.unparse(a.annotation) for a in node.args.kwonlyargs if a.annotation}
        return _declaration(texts, self, self._rules(node))

    def _rules(self, node: ast.FunctionDef | ast.ClassDef) -> list[Rule]:
        return [
            eval(ast.unparse(argument), {}, self)
            for call in node.decorator_list
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "checked"
            for argument in call.args
        ]


_FOREIGN = ("torch", "numpy", "abc")  # nothing in them is a type of configuration values
