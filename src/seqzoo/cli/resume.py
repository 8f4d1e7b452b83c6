"""Going on with runs: which run is meant, and what may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seqzoo.config import files
from seqzoo.config.requires import check_requirements
from seqzoo.errors import UserError
from seqzoo.models.zoo import full_name
from seqzoo.runs.directory import RunDirectory

LIMITS = {"max_steps": "steps", "max_seconds": "train_seconds", "max_epochs": "epochs"}
CHANGEABLE = ("trainer", "logger", "hook", "resume", "plugins")  # what a resumed run may get anew
KEPT = ("model", "architecture", "task", "optim", "schedule")  # and the sections that it keeps


def resumed_config(
    directory: RunDirectory, overrides: Sequence[Any], composed: Mapping[str, Any]
) -> dict[str, Any]:
    """The run's own configuration with what was given now.

    Args:
        composed: the configuration of a new run with these overrides, for the loggers and hooks.

    Raises:
        UserError: a plugin that is not in use here; no checkpoint; a key that has to stay.
    """
    saved = directory.config
    check_requirements(saved, directory.path)
    if not directory.has_checkpoint():
        raise UserError(f"resume={directory.path}: no checkpoint to go on from: start a new run")
    saved = complete(saved)
    config = {**saved, "trainer": dict(saved["trainer"]), "resume": None}
    for override in overrides:
        section, _, key = override.key_or_group.partition(".")
        if section == "trainer" and key:
            config["trainer"][key] = override.value()
        elif section in ("logger", "hook"):
            config[section] = composed[section]
        elif not _may_differ(override) and not _agrees(override, saved, composed):
            raise UserError(
                f"{override.input_line}: {directory.path} keeps its model, data and optimiser, and "
                "only trainer.*, logger and hook can change: leave it out, or start a new run"
            )
    config.pop("requires", None)  # recorded anew
    return config


def complete(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with the keys that have come since it was made, at their defaults."""
    config = dict(saved)
    for section in (*KEPT, "trainer"):
        if own := saved.get(section):  # otherwise `check_config` refuses it
            config[section] = {**files.defaults(section, own.get("name", "default")), **own}
    return config


def _may_differ(override: Any) -> bool:
    section = override.key_or_group.partition(".")[0]
    return override.is_hydra_override() or section in CHANGEABLE


def _agrees(override: Any, saved: Mapping[str, Any], composed: Mapping[str, Any]) -> bool:
    """Whether a run was made with an override, of those that `composed` was made with."""
    section, _, key = override.key_or_group.partition(".")
    if section == "experiment":
        return all(saved.get(part) == composed[part] for part in KEPT)
    values = saved.get(section)
    value = override.value()
    if not isinstance(values, dict):
        return False
    if not key:
        return values.get("name") == full_name(str(value))
    return bool(values.get(key) == value)


def refuse_finished(directory: RunDirectory, trainer: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that has reached a limit.

    Raises:
        UserError: the limit, and a larger one to give.
    """
    summary = directory.summary
    for limit, reached in LIMITS.items():
        done, end = summary.get(reached, 0), trainer[limit]
        if summary.get("status") == "finished" and end is not None and done >= end:
            raise UserError(
                f"resume={directory.path}: finished: trainer.{limit}={end} was reached at step "
                f"{summary['steps']:,}: raise it, as with trainer.{limit}={2 * end:g}"
            )


def interrupted(
    root: Path, overrides: Sequence[Any], composed: Mapping[str, Any]
) -> RunDirectory | None:
    """The newest run below `root` that has a checkpoint, has not finished, and was made with the
    overrides given: what `resume=auto` goes on with.

    Args:
        composed: the configuration of a new run with these overrides.

    Raises:
        UserError: a run directory that cannot be read.
    """
    fixed = [override for override in overrides if not _may_differ(override)]

    def fits(directory: RunDirectory) -> bool:
        saved = complete(directory.config)
        return all(_agrees(override, saved, composed) for override in fixed)

    matching = [one for one in runs_below(root) if one.unfinished() and fits(one)]
    return max(matching, key=lambda directory: directory.last_written, default=None)


def same_request(root: Path, config: Mapping[str, Any]) -> RunDirectory | None:
    """The newest run below `root` of the very same configuration that finished or can go on: what a
    sweep with resume=auto takes for a job."""

    def request(values: Mapping[str, Any]) -> dict[str, Any]:
        left_out = ("resume", "hydra", "logger", "requires")
        model = dict(values["model"])
        if model.get("parameters") is not None:
            del model["dim"]  # which a run that has begun has solved for
        return {k: v for k, v in {**values, "model": model}.items() if k not in left_out}

    same = [
        directory
        for directory in runs_below(root)
        if (directory.has_checkpoint() or directory.summary.get("status") == "finished")
        and request(directory.config) == request(config)
    ]
    return max(same, key=lambda directory: directory.last_written, default=None)


def runs_below(root: Path) -> Iterator[RunDirectory]:
    """Training runs at or below a folder; others are passed over."""
    for directory in RunDirectory.below(root):
        with suppress(UserError):
            directory.config  # noqa: B018 (reads it)
            yield directory
