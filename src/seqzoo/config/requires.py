"""Which plugins a run was made with: recorded in its config.yaml under `requires`, and checked when
the run is loaded.

The record is text for people: a name that is missing is explained by it. No module is imported
because a run directory names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from seqzoo.config import files, plugins
from seqzoo.config.values import shown
from seqzoo.errors import UserError

FIELDS = {  # for each kind of name in a configuration, the fields of `Plugin` it may be in
    "model": ("models",),
    "task": ("tasks",),
    "task.corpus": ("corpora", "pair_corpora", "labelled_corpora"),
    "optim": ("optim",),
    "schedule": ("schedule",),
    "logger": ("loggers",),
    "hook": ("hooks",),
}


def requirements(config: Mapping[str, Any]) -> dict[str, str]:
    """The plugin of each name in a configuration that is not built in, such as
    `{"model=leaky": "seqzoo_example (seqzoo-example 0.1.0)"}`."""
    found = {}
    for kind, name in _names(config):
        if (module := _origin(kind, name)) is not None:
            found[f"{kind}={name}"] = plugins.described(module)
    return found


def check_requirements(config: Mapping[str, Any], where: object, *kinds: str) -> None:
    """Refuse a run that needs a plugin which is not in use here.

    Args:
        where: the run directory, for the message.
        kinds: of the names that are needed, such as `model`; none: all.

    Raises:
        UserError: the name, the plugin it is from, and how to get it.
    """
    recorded = config.get("requires")
    if not isinstance(recorded, Mapping):
        return
    for kind, name in _names(config):
        plugin = recorded.get(f"{kind}={name}")
        if plugin is None or (kinds and kind not in kinds):
            continue
        if _origin(kind, name) is None and name not in files.names(kind):
            raise UserError(
                f"{where}: {kind}={name} is from the plugin {shown(plugin)}, which is not in use "
                "here: install its package, or name its module in SEQZOO_PLUGINS"
            )


def _names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("model", "task", "optim", "schedule"):
        yield kind, str(config.get(kind, {}).get("name"))
    yield "task.corpus", str(config["task"].get("corpus"))
    for kind in ("logger", "hook"):
        yield from ((kind, str(name)) for name in config.get(kind) or {})


def _origin(kind: str, name: str) -> str | None:
    found = (plugins.origin(field, name) for field in FIELDS[kind])
    return next((module for module in found if module is not None), None)
