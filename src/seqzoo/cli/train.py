"""`seqzoo train`: check everything, then one run or a sweep, new or resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo.cli import launch, resume, sweep
from seqzoo.cli.checks import check_config, check_folder
from seqzoo.cli.compose import compose, parse, print_instead, text_for_hydra
from seqzoo.cli.help import train_help
from seqzoo.cli.parser import read_options
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory

if TYPE_CHECKING:
    from seqzoo.runs.run import Run


def main(arguments: list[str]) -> int:
    """The command; its exit status."""
    options = read_options("train", arguments)
    overrides = parse(options.overrides, multirun=options.multirun)
    name = options.config_name or "train"
    if options.help:
        print(train_help(compose(overrides, name)[0]))
        return 0
    configs = compose(overrides, name)
    wanted = configs[0].get("resume")
    if wanted is not None and not options.multirun:
        if (directory := _directory_to_resume(str(wanted), configs[0], overrides)) is not None:
            config = _config_to_resume(directory, overrides, configs[0])
            if print_instead(options, overrides, [config], "train", f"resume={wanted}"):
                return 0
            return launch.attempt(config, directory, resuming=True)[0]
    elif wanted not in (None, "auto"):
        raise UserError(f"resume={wanted}: names one run: leave -m out, or give resume=auto")
    for config in configs:
        check_config(config)
        check_folder(config["hydra"]["sweep" if options.multirun else "run"]["dir"])
    if print_instead(options, overrides, configs, "train", "-m" if options.multirun else None):
        return 0
    for config in configs:
        launch.prepare(config["task"])
    texts = [text_for_hydra(override) for override in overrides]
    if options.multirun:
        return sweep.run(options, texts, configs)
    return sweep.run_alone(options, texts)


# ---- resuming one run


def _directory_to_resume(
    wanted: str, config: dict[str, Any], overrides: Sequence[Any], *, quiet: bool = False
) -> RunDirectory | None:
    """The run that `resume=` means; None where `auto` finds none, and a new run begins."""
    if wanted != "auto":
        return RunDirectory.open(Path(wanted))
    check_config(config)
    given = [o.value() for o in overrides if o.key_or_group == "hydra.run.dir"]
    root = (
        Path(str(given[-1])) if given else launch.runs_folder(Path(config["hydra"]["run"]["dir"]))
    )
    found = resume.interrupted(root, overrides, config)
    if not quiet:
        text = f"resuming {found.path}" if found else f"nothing unfinished in {root}: a new run"
        print(text, flush=True)
    return found


def _config_to_resume(
    directory: RunDirectory, overrides: Sequence[Any], composed: dict[str, Any]
) -> dict[str, Any]:
    """The configuration with which a run goes on, checked."""
    config = resume.resumed_config(directory, overrides, composed)
    check_config(config)
    resume.refuse_finished(directory, config["trainer"])
    check_folder(str(directory.path))
    return config


# ---- from Python


def train(*overrides: str, hooks: Sequence[Any] = (), quiet: bool = False) -> Run:
    """Train as `seqzoo train` does, in this process.

    Args:
        *overrides: as on the command line, such as ``"model=gru", "trainer.max_seconds=60"``.
        hooks: objects with the methods of `seqzoo.training.hooks.Hook`.
        quiet: print nothing.

    Returns:
        The run, with its model.

    Raises:
        UserError: a wrong request.
        FloatingPointError: the loss became infinite or NaN.
    """
    from seqzoo.runs.run import load

    if not all(isinstance(text, str) for text in overrides):
        raise UserError(
            "seqzoo.train: give each override as a text of its own, such as "
            'seqzoo.train("model=gru", "trainer.max_steps=100"); a list with a star, *overrides'
        )
    launch.forget_data()
    parsed = parse(overrides)
    (config,) = compose(parsed)
    directory, wanted = None, config["resume"]
    if wanted is not None:
        directory = _directory_to_resume(str(wanted), config, parsed, quiet=quiet)
    wanted_folder = config.pop("hydra")["run"]["dir"]
    resuming = directory is not None
    if directory is not None:
        config = _config_to_resume(directory, parsed, config)
    else:
        check_config(config)
        check_folder(wanted_folder)
        directory = launch.claim(wanted_folder, quiet=quiet)
        config["resume"] = None
    launch.run(config, directory, resuming=resuming, hooks=hooks, quiet=quiet)
    return load(directory.path)
