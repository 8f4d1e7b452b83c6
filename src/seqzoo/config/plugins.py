"""What other installed packages add: models, tasks, corpora, optimisers, schedules, loggers, hooks,
backends, and their YAML files.

A package declares an entry point of the group `seqzoo.plugins` that names a module; the module has
an attribute `plugin`, a `Plugin`. A module that is not installed as a plugin is named with
`plugins=[module]`, or in the variable SEQZOO_PLUGINS; a script or a notebook that has such an
attribute is the module `__main__`. The module should import no torch: everything in a `Plugin` is
an import path, `"package.module:object"`, loaded when it is used. To add one after the variable was
read, call `use`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from seqzoo.errors import UserError

GROUP = "seqzoo.plugins"


@dataclass(frozen=True)
class Plugin:
    """What one package adds. Every mapping is from a name to what the built-in table of that kind
    holds.

    Attributes:
        models: `seqzoo.models.zoo.Family` objects.
        tasks: `seqzoo.tasks.TaskEntry` objects.
        corpora, pair_corpora, labelled_corpora: functions that give a text, pairs, labelled texts.
        optim: functions that make an optimiser, as `seqzoo.training.optimizers.adamw`.
        schedule: as `seqzoo.training.schedules.cosine`.
        loggers, hooks: classes, as in `seqzoo.training.loggers` and `seqzoo.training.hooks`.
        backends: `seqzoo.ops.registry.Backend` objects, or their import paths, by
            "operation.name".
        configs: a folder with the groups' YAML files.
    """

    models: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Any] = field(default_factory=dict)
    corpora: Mapping[str, str] = field(default_factory=dict)
    pair_corpora: Mapping[str, str] = field(default_factory=dict)
    labelled_corpora: Mapping[str, str] = field(default_factory=dict)
    optim: Mapping[str, str] = field(default_factory=dict)
    schedule: Mapping[str, str] = field(default_factory=dict)
    loggers: Mapping[str, str] = field(default_factory=dict)
    hooks: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, Any] = field(default_factory=dict)
    configs: Path | None = None


VARIABLE = "SEQZOO_PLUGINS"  # names further modules, for this process and those it starts
SCRIPT = "__main__"  # which is another module in the processes that this one starts
_script_in_use = False
changes = 0  # how often `use` was called: tables made before are out of date


def use(modules: Iterable[str]) -> None:
    """Add the plugins of some modules, as `plugins=[...]` names them.

    Raises:
        UserError: a module that cannot be imported, or is no plugin.
    """
    global _script_in_use, changes
    named = dict.fromkeys((*in_use(), *modules))
    for module in named:
        _load(module)
    _script_in_use = SCRIPT in named
    named.pop(SCRIPT, None)
    changes += 1
    if named:
        os.environ[VARIABLE] = ",".join(named)


def active() -> dict[str, Plugin]:
    """Every plugin in use, by the module it is in."""
    return {**_installed(), **{module: _load(module) for module in in_use()}}


def in_use() -> tuple[str, ...]:
    """The modules that were named, beside the installed plugins."""
    named = [module for module in os.environ.get(VARIABLE, "").split(",") if module]
    return (*named, SCRIPT) if _script_in_use else tuple(named)


def registered(kind: str, builtin: Mapping[str, Any]) -> dict[str, Any]:
    """A built-in table together with what plugins add to it.

    Args:
        kind: a field of `Plugin`.

    Raises:
        UserError: two of one name.
    """
    table = dict(builtin)
    for module, plugin in active().items():
        for name, value in getattr(plugin, kind).items():
            if table.setdefault(name, value) is not value:
                raise UserError(f"{module}: its {name} in {kind} exists already: rename it there")
    return table


def origin(kind: str, name: str) -> str | None:
    """The module of the plugin that adds a name; None where it is ours."""
    added = (module for module, plugin in active().items() if name in getattr(plugin, kind))
    return next(added, None)


def described(module: str) -> str:
    """A plugin's module, and the package and version it is from or the file of the script."""
    if module == SCRIPT:
        return f"{module} ({Path(getattr(sys.modules[SCRIPT], '__file__', 'a notebook')).name})"
    for point in _points():
        if _module(point) == module and point.dist is not None:
            return f"{module} ({point.dist.name} {point.dist.version})"
    return module


def config_folders() -> list[Path]:
    """The folders of YAML files that plugins bring."""
    return [plugin.configs for plugin in active().values() if plugin.configs is not None]


@cache
def _installed() -> dict[str, Plugin]:
    return {module: _load(module) for module in map(_module, _points())}


@cache
def _load(module: str) -> Plugin:
    installed = next((point.dist for point in _points() if _module(point) == module), None)
    if installed is None:
        given, remedy = f"plugins=[{module}]", "install it, or leave it out"
    else:
        given = f"the plugin {described(module)}"
        remedy = f"repair it, or uninstall {installed.name}"
    try:
        plugin = getattr(import_module(module), "plugin", None)
    except Exception as error:  # a module can raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{given}: cannot be imported ({reason}): {remedy}") from None
    if not isinstance(plugin, Plugin):
        raise UserError(f"{given}: has no attribute `plugin` that is a seqzoo Plugin: {remedy}")
    return plugin


def _points() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def _module(point: EntryPoint) -> str:
    return point.value.partition(":")[0]
