"""What Hydra calls: a run, or each run of a sweep, of which those that finished before are
skipped."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqzoo.cli import launch, resume
from seqzoo.cli.checks import check_config
from seqzoo.cli.compose import run_hydra
from seqzoo.config import plugins
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory


class JobFailed(Exception):
    """A run of a sweep failed, and has printed why."""


def run_alone(options: Any, texts: Sequence[str]) -> int:
    """One run, in a directory that Hydra names; the exit status."""
    statuses = []

    def one(cfg: Any) -> float | None:
        status, value = _run(cfg)
        statuses.append(status)
        return value

    run_hydra(one, options, texts, "train")
    return statuses[-1]


def run(options: Any, texts: Sequence[str], configs: Sequence[dict[str, Any]]) -> int:
    """A run for each combination of values; the exit status."""
    root, began = Path(configs[0]["hydra"]["sweep"]["dir"]), time.time()
    if not any(text.startswith("hydra.sweep.dir=") for text in texts):
        texts = [*texts, f"hydra.sweep.dir={root}"]  # its name is a time, which Hydra reads again
    try:
        run_hydra(job, options, texts, "train")
    except JobFailed:
        _show(root, configs)
        new = [run for run in RunDirectory.below(root) if run.last_written >= began]
        failed = [run for run in new if run.summary.get("status") == "failed"]
        count = f"{len(failed)} of {len(new)} runs" if failed else "a run of the sweep"
        folders = sorted(str(launch.short(each.path.absolute())) for each in failed)
        launch.report(f"{count} failed: see {', '.join(folders or [str(root)])}")
        return launch.FAILED
    except KeyboardInterrupt:
        _show(root, configs)
        launch.report("the sweep was stopped: the same command with resume=auto goes on with it")
        return launch.INTERRUPTED
    _show(root, configs)
    return launch.DONE


def _show(root: Path, configs: Sequence[dict[str, Any]]) -> None:
    """Print the runs of a sweep in a table, the best first, and how to compare them further: those
    in its folder, and those that had finished before it."""
    from seqzoo.analysis.compare import runs, write

    found = {each.path.resolve(): each for each in resume.runs_below(root)}
    folders = [root] if found else []
    for config in configs:
        if config.get("resume") == "auto":
            earlier = _before(launch.short((root / "0").absolute()), config)
            if earlier is not None and earlier.path.resolve() not in found:
                found[earlier.path.resolve()] = earlier
                folders.append(earlier.path)
    if found:
        print(f"\n{write.of_a_sweep(runs.load(list(found.values())))}\nnext:")
        given = " ".join(shlex.quote(str(launch.short(path.absolute()))) for path in folders)
        print(f"  {launch.command()} compare {given}", flush=True)


def job(cfg: Any) -> float | None:
    """A job of a sweep, wherever its launcher runs it; the task's own metric.

    Raises:
        JobFailed: so that the launcher and the sweeper know.
        KeyboardInterrupt: the run was interrupted, which ends the sweep.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    print(f"\n=== run {hydra.job.num + 1}: {' '.join(hydra.overrides.task)}", flush=True)
    status, value = _run(cfg)
    if status == launch.INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise JobFailed
    return value


def _run(cfg: Any) -> tuple[int, float | None]:
    """Train what Hydra composed; the exit status and the task's own metric."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    folder = launch.short(Path(hydra.runtime.output_dir if sweep else hydra.run.dir).absolute())
    try:
        plugins.use(config.get("plugins") or [])
        check_config(config)  # also what only a sweeper knew
        if sweep and config.pop("resume", None) == "auto":
            if (found := _before(folder, config)) is not None:
                return _skip_or_resume(found)
        directory = launch.claim(folder)
    except UserError as error:
        launch.report(error)
        return launch.REFUSED, None
    config["resume"] = None
    return _train(config, directory, sweep=sweep)


def _before(folder: Path, config: dict[str, Any]) -> RunDirectory | None:
    """The run that a job of a sweep, whose folder this is, skips or goes on with."""
    return resume.same_request(launch.runs_folder(folder, folder.parent.parent), config)


def _skip_or_resume(directory: RunDirectory) -> tuple[int, float | None]:
    """Skip a finished run of a sweep, or go on with an interrupted one."""
    if directory.summary.get("status") == "finished":
        print(f"finished before: {directory.path}", flush=True)
        return launch.DONE, launch.best_metric(directory.summary)
    print(f"resuming {directory.path}", flush=True)
    config = resume.complete(directory.config)
    return _train(config, directory, sweep=True, resuming=True)


def _train(
    config: dict[str, Any], directory: RunDirectory, *, sweep: bool, resuming: bool = False
) -> tuple[int, float | None]:
    status, summary = launch.attempt(config, directory, resuming=resuming, in_sweep=sweep)
    return status, launch.best_metric(summary) if summary else None
