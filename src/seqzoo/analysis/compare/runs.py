"""What training runs logged, and names that tell them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqzoo import tasks
from seqzoo.config import files
from seqzoo.config.requires import check_requirements
from seqzoo.config.values import shown
from seqzoo.errors import UserError, nearest
from seqzoo.runs.directory import RunDirectory

LONGEST_NAME = 60


@dataclass
class TrainingRun:
    """A run's numbers, without its model.

    Attributes:
        name: its model, and the keys by which it differs from the other runs.
        keys: its configuration, flat.
        metrics: the lines of metrics.jsonl.
        summary: summary.json; {} for a run that has not ended.
        flops_per_token: of training: a forward and a backward pass.
    """

    folder: Path
    name: str
    keys: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    flops_per_token: float

    def curve(self, metric: str, axis: str) -> list[tuple[float, float]]:
        """(x, value) wherever the metric was logged; `axis` is step, tokens, seconds or flops."""
        scale = self.flops_per_token if axis == "flops" else 1
        column = "tokens" if axis == "flops" else axis
        return [
            (line[column] * scale, line[metric])
            for line in self.metrics
            if line.get(metric) is not None
        ]

    @property
    def status(self) -> str:
        return str(self.summary.get("status", "running or killed"))

    def result(self, metric: str) -> float:
        """The summary's value, which is the best checkpoint's; without one, the last logged."""
        logged = [math.nan, *(value for _, value in self.curve(metric, "step"))]
        return float(self.summary.get(metric, logged[-1]))


def load(directories: Sequence[RunDirectory]) -> list[TrainingRun]:
    """Read runs, and name them by what differs."""
    runs = [_read(directory) for directory in directories]
    names = [_name(run, [other for other in runs if other.name == run.name]) for run in runs]
    for run, name in zip(runs, names, strict=True):
        same = [r.folder for r, other in zip(runs, names, strict=True) if other == name]
        run.name = name if len(same) == 1 else f"{name} ({_distinct_end(run.folder, same)})"
    return runs


def _read(directory: RunDirectory) -> TrainingRun:
    from seqzoo.models.cost import flops_of_training
    from seqzoo.models.zoo import build, build_keys

    config, summary = directory.config, directory.summary
    check_requirements(config, directory.path, "model")
    model = build(**{**build_keys(config), **directory.sizes()}).eval()
    seq_len = summary.get("seq_len", config["task"].get("seq_len", 1))
    return TrainingRun(
        folder=directory.path,
        name=config["model"]["name"],
        keys=files.flat(config),
        metrics=directory.metrics(),
        summary=summary,
        flops_per_token=flops_of_training(model, seq_len),
    )


def differing_keys(runs: Sequence[TrainingRun]) -> list[str]:
    """The keys whose values are not the same in all runs that have them."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    return [k for k in keys if len({repr(run.keys[k]) for run in runs if k in run.keys}) > 1]


def _name(run: TrainingRun, same_model: Sequence[TrainingRun]) -> str:
    """The model's name, and the keys by which the run differs from others of its model, if few."""
    keys = [
        f"{k.removesuffix('.name').rpartition('.')[2]}={shown(run.keys[k])}"
        for k in differing_keys(same_model)
        if k in run.keys
    ]
    name = " ".join([run.name, *keys])
    return name if len(name) <= LONGEST_NAME else run.name


def _distinct_end(folder: Path, same: Sequence[Path]) -> str:
    """The shortest end of a path that none of the others has."""
    parts = folder.resolve().parts
    others = [path.resolve().parts for path in same if path != folder]
    n = next(n for n in range(1, 99) if all(other[-n:] != parts[-n:] for other in others))
    return "/".join(parts[-n:])


def pick_metric(runs: Sequence[TrainingRun], wanted: str | None) -> str:
    """The metric given, or the first validation metric that every run has.

    Raises:
        UserError: not all runs have it.
    """
    if unmeasured := [run for run in runs if not run.metrics]:
        found = ", ".join(f"{run.folder} ({run.status})" for run in unmeasured)
        raise UserError(f"{found}: nothing measured yet: leave out such runs")
    logged = dict.fromkeys(key for line in runs[0].metrics for key in line if "/" in key)
    common = [
        key
        for key in logged
        if all(run.curve(key, "step") for run in runs)
        and not isinstance(runs[0].curve(key, "step")[0][1], str)
    ]
    ordered = [key for key in common if key.startswith("val/")] + common
    if not ordered or (wanted is not None and wanted not in common):
        raise UserError(
            f"--metric {wanted or 'val/loss'}: not in all of these runs"
            f"{nearest(wanted or '', common)}"
        )
    return wanted or ordered[0]


def best_first(runs: Sequence[TrainingRun], metric: str) -> list[TrainingRun]:
    """The runs in the order of their results."""
    sign = -1 if tasks.metric(metric).higher_is_better else 1
    return sorted(runs, key=lambda run: sign * run.result(metric))
