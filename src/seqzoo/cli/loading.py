"""Loading the run that a command works on, after what can be refused without torch was."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo import tasks
from seqzoo.config import files
from seqzoo.config.devices import check_device
from seqzoo.config.requires import check_requirements
from seqzoo.config.schema import check_value
from seqzoo.config.values import CachePolicy
from seqzoo.errors import UserError
from seqzoo.models.zoo import check_model
from seqzoo.runs.directory import RunDirectory

if TYPE_CHECKING:
    from seqzoo.runs.run import Run


def load_run(options: Namespace, command: str | None = None, folder: str | None = None) -> Run:
    """The run of a command's options.

    Args:
        command: the run's task has to support it.
        folder: in place of ``options.folder``.

    Raises:
        UserError: no run, a run of another task, a wrong device or cache.
    """
    directory = RunDirectory.open(Path(folder or options.folder))
    config = directory.config
    check_requirements(config, directory.path, "model", "task")
    if command is not None:
        _check_supported(directory, command)
    check_device("--device", options.device)
    if directory.tokenizer_path() is None:
        raise UserError(
            f"{directory.path}: this run has no model yet: wait for one, or train again"
        )
    other = {}
    if getattr(options, "cache", None) is not None:
        check_value("--cache", options.cache, CachePolicy)
        if "cache" not in files.defaults("model", config["model"]["name"]):
            raise UserError(
                f"--cache {options.cache}: the state of {config['model']['name']} does not grow: "
                "leave it out"
            )
        other["cache"] = options.cache
    check_model({**config["model"], **other})
    from seqzoo.runs.run import load

    return load(directory.path, device=options.device, checkpoint=options.checkpoint, **other)


def _check_supported(directory: RunDirectory, command: str) -> None:
    task = directory.config["task"]["name"]
    supported = tasks.entry(task).commands
    if command not in supported:
        use = next(iter(supported), "eval")
        raise UserError(f"{directory.path}: a run of task={task}: use seqzoo {use}")


def search_options(options: Namespace, task: Mapping[str, Any]) -> dict[str, Any]:
    """Beams and length penalty: those given, else those of the run's task."""
    known = {**files.defaults("task", task["name"]), **task}
    penalty = options.length_penalty
    return {
        "beams": options.beam or known["beam"],
        "length_penalty": known["length_penalty"] if penalty is None else penalty,
    }
