"""The optimisers, schedules, loggers and hooks that a configuration can name; a plugin adds to each
of these tables.

This module loads no torch. To add to a table: one class or function, a line here, and a YAML file
in ``configs/optim``, ``configs/schedule``, ``configs/logger`` or ``configs/hook``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqzoo.config import files
from seqzoo.config.plugins import registered
from seqzoo.config.schema import load

# An optimiser: function(model, *, lr, ...) -> Optimizer.
OPTIMIZERS = {
    "adamw": "seqzoo.training.optimizers:adamw",
    "muon": "seqzoo.training.optimizers:muon",
}
# A schedule: function(*, warmup_steps, ...) -> function(step, progress) -> factor.
SCHEDULES = {
    "cosine": "seqzoo.training.schedules:cosine",
    "wsd": "seqzoo.training.schedules:wsd",
    "linear": "seqzoo.training.schedules:linear",
    "constant": "seqzoo.training.schedules:constant",
}
# A logger: class(**keys), derived from `seqzoo.training.loggers.Logger`.
LOGGERS = {
    "tensorboard": "seqzoo.training.loggers:TensorBoard",
    "wandb": "seqzoo.training.loggers:Wandb",
    "trackio": "seqzoo.training.loggers:Trackio",
}
# A hook that a configuration can add: class(**keys), derived from `seqzoo.training.hooks.Hook`.
HOOKS = {
    "early_stopping": "seqzoo.training.hooks:EarlyStopping",
}


# For each section of a configuration the field of `Plugin`, and the built-in table.
TABLES = {
    "optim": ("optim", OPTIMIZERS),
    "schedule": ("schedule", SCHEDULES),
    "logger": ("loggers", LOGGERS),
    "hook": ("hooks", HOOKS),
}


def make(section: str, keys: Mapping[str, Any], *arguments: Any) -> Any:
    """What the section `optim` or `schedule` names, made with its other keys."""
    others = {key: value for key, value in keys.items() if key != "name"}
    return load(path_of(section, keys["name"]))(*arguments, **others)


def make_all(section: str, keys: Mapping[str, Mapping[str, Any] | None]) -> list[Any]:
    """The loggers or hooks of the section `logger` or `hook`, which has a section for each."""
    return [load(path_of(section, name))(**(own or {})) for name, own in keys.items()]


def path_of(kind: str, name: str) -> str:
    """The import path of an optimiser, schedule, logger or hook.

    Args:
        kind: the section of the configuration: `optim`, `schedule`, `logger` or `hook`.

    Raises:
        UserError: none of that name; the nearest name is offered.
    """
    return str(files.entry(kind, name, registered(*TABLES[kind])))
