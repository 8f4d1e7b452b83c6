"""What commands read and write: a run, standard input, and the path after `--out`."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo import tasks
from seqzoo.config import files
from seqzoo.config.requires import check_requirements
from seqzoo.config.values import CachePolicy, check_device, check_value
from seqzoo.errors import UserError
from seqzoo.models.zoo import check_model
from seqzoo.runs.directory import RunDirectory

if TYPE_CHECKING:
    from seqzoo.runs.run import Run

BATCH = 512  # lines of standard input at once, unless a person types them


def load_run(options: Namespace, command: str | None = None, folder: str | None = None) -> Run:
    """The run of a command's options. What can be refused without torch is refused first.

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
        tasks.check_supported(command, config["task"]["name"], directory.path)
    check_device("--device", options.device)
    if directory.tokenizer_path() is None:
        raise UserError(
            f"{directory.path}: no model in it: a run has one after its first checkpoint: train "
            "again, or wait if the run is still going"
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


def search_keys(options: Namespace) -> dict[str, Any]:
    """The keys of a task that the options of the search replace."""
    given = {"beam": options.beam, "length_penalty": options.length_penalty}
    return {key: value for key, value in given.items() if value is not None}


def standard_input() -> Iterator[list[str]]:
    """Its lines without their ends, in batches; one by one from a terminal.

    Raises:
        UserError: it is not UTF-8.
    """
    size = 1 if sys.stdin.isatty() else BATCH
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # whatever the locale is
    lines = (line.rstrip("\r\n") for line in sys.stdin)
    try:
        while batch := list(islice(lines, size)):
            yield batch
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is not {error.encoding} at byte {error.start}: convert it first"
        ) from None


def new_path(out: str) -> Path:
    """A path where nothing is yet.

    Raises:
        UserError: there is something, or a file where a folder would have to be.
    """
    path = Path(out).absolute()
    if path.exists():
        raise UserError(f"--out {out}: exists already: give a new name")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file: give a name elsewhere")
    return Path(out)


def dated(kind: str) -> Path:
    """A folder named by the time, below runs/."""
    return Path(f"runs/{kind}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
