"""`seqzoo exam`: families down, abilities across; the results in a directory that the same command
goes on with."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo.cli import launch
from seqzoo.cli.checks import check_config, check_folder
from seqzoo.cli.compose import compose, parse, print_instead, refuse_model
from seqzoo.cli.help import exam_help
from seqzoo.cli.parser import read_options
from seqzoo.errors import UserError
from seqzoo.runs.directory import METRICS

if TYPE_CHECKING:
    from seqzoo.exam.plan import Cell, Plan


def main(arguments: list[str]) -> int:
    options = read_options("exam", arguments)
    overrides = parse(options.overrides, multirun=options.multirun)
    refuse_model(overrides)
    configs = compose(overrides, options.config_name or "exam")
    if options.help:
        print(exam_help(configs[0]["exam"]))
        return 0
    if options.multirun:
        raise UserError("-m: an exam is a sweep itself: leave it out")
    config = configs[0]
    wanted = config.pop("hydra")["run"]["dir"]
    from seqzoo.exam import plan

    one = plan.make(config)
    check_folder(wanted)
    if (Path(wanted) / METRICS).exists():
        raise UserError(f"hydra.run.dir={wanted}: a training run: give an exam another folder")
    if print_instead(options, overrides, configs, "exam"):
        return 0
    text = one.settings.text and _digest(one.settings.text)
    from seqzoo.exam import runner, write

    folder = launch.short(Path(wanted).absolute())
    print(f"{len(one.models)} models, {len(one.abilities)} abilities, {folder}")
    print(write.efforts([asdict(each) for each in one.abilities], asdict(one.settings)), flush=True)
    names = _names(one, text)
    command = shlex.join(["seqzoo", "exam", *arguments])
    with redirect_stdout(launch.Output(sys.stdout)):  # a reader that leaves does not end the exam
        found = runner.run(one, folder, names, command, lambda line: print(line, flush=True))
        print(write.write(found, folder), end="")
        _what_next(found, folder, arguments)
    if found["stopped"]:
        return launch.INTERRUPTED
    failed = found["costs_failed"] or any(cell["status"] == "failed" for cell in found["cells"])
    return launch.FAILED if failed else 0


def _what_next(found: Mapping[str, Any], folder: Path, arguments: Sequence[str]) -> None:
    """Print where the results are, and how to go on with an exam that was stopped."""
    if found["scores"]:
        print(
            f"\nwritten to {folder}:\n  report.html, exam.md, exam.csv, exam.json, figures\n"
            f"next:\n  {launch.command()} dashboard {shlex.quote(str(folder))}"
        )
    if found["stopped"]:
        given = [each for each in arguments if not each.startswith("hydra.run.dir=")]
        again = shlex.join([*given, f"hydra.run.dir={folder}"])
        print(f"to go on:\n  {launch.command()} exam {again}")


def _names(one: Plan, text: str | None) -> Any:
    """A function from a cell to a name that stands for its whole configuration and the text that
    is given.

    Each model is composed with each ability once, which also refuses what cannot run before the
    first cell is trained.

    Args:
        text: the digest of `exam.text`.
    """
    composed: dict[tuple[str, str], dict[str, Any]] = {}

    def config(cell: Cell) -> dict[str, Any]:
        at = cell.model, cell.ability
        if at not in composed:
            composed[at] = compose(parse(one.overrides(cell)))[0]
            composed[at].pop("hydra")
            check_config(composed[at])
        return composed[at]

    def name(cell: Cell) -> str:
        whole = json.loads(json.dumps(config(cell)))
        whole["optim"]["lr"], whole["trainer"]["seed"] = cell.rate, cell.seed
        if text is not None and whole["task"].get("path") == one.settings.text:
            whole["text_sha256"] = text
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]
        return f"{cell.ability}/{cell.model}_rate{cell.rate:g}_seed{cell.seed}_{digest}"

    for ability in one.abilities:
        for cell in one.cells(ability):
            name(cell)
    return name


def _digest(text: str) -> str:
    """SHA-256 of a text file.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    if not Path(text).is_file():
        raise UserError(f"exam.text={text}: no such file: give the path of a text file")
    if not Path(text).stat().st_size:
        raise UserError(f"exam.text={text}: empty: give a text to train and to validate on")
    from seqzoo.runs.checkpoint import sha256

    return sha256(Path(text))
