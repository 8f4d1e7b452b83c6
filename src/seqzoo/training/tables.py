"""The optimisers, schedules, loggers and hooks that a configuration can name; a plugin adds to each
of these tables.

This module loads no torch. To add to a table: one class or function, a line here, and a YAML file in
``configs/optim``, ``configs/schedule`` or ``configs/logger``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqzoo.config.plugins import registered
from seqzoo.config.schema import load
from seqzoo.errors import unknown

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
LOGGERS = {
    "tensorboard": "seqzoo.training.loggers:TensorBoard",
    "wandb": "seqzoo.training.loggers:Wandb",
    "trackio": "seqzoo.training.loggers:Trackio",
}
# Hooks of every run, in the order in which they are called after a step.
HOOKS = {
    "log": "seqzoo.training.hooks:Log",
    "evaluate": "seqzoo.training.hooks:Evaluate",
    "sample": "seqzoo.training.hooks:Sample",
    "checkpoint": "seqzoo.training.hooks:SaveCheckpoint",
}


def make_optimizer(keys: Mapping[str, Any], model: Any) -> Any:
    """The optimiser of a configuration's section `optim`, over the parameters of a model."""
    return _find("optim", keys["name"], OPTIMIZERS)(model, **_but_name(keys))


def make_schedule(keys: Mapping[str, Any]) -> Any:
    """The schedule of a configuration's section `schedule`."""
    return _find("schedule", keys["name"], SCHEDULES)(**_but_name(keys))


def make_loggers(sections: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The loggers of a configuration's section `logger`, which has a section for each of them."""
    return [_find("logger", name, LOGGERS)(**(keys or {})) for name, keys in sections.items()]


def make_hooks(settings: Any) -> list[Any]:
    """The hooks of every run: ours, then those of plugins."""
    return [load(path).from_settings(settings) for path in registered("hooks", HOOKS).values()]


def _find(kind: str, name: str, builtin: Mapping[str, str]) -> Any:
    """What a table, or a plugin, has under a name."""
    known = registered("loggers" if kind == "logger" else kind, builtin)
    if name not in known:
        raise unknown(kind, name, known)
    return load(known[name])


def _but_name(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key != "name"}
