"""What training runs logged, and names that tell them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqzoo.config import files
from seqzoo.config.requires import check_requirements
from seqzoo.config.values import shown
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory

LONGEST_NAME = 60
SEED = "trainer.seed"


@dataclass
class TrainingRun:
    """A run's numbers, without its model.

    Attributes:
        name: its model, and the keys by which it differs from the other runs.
        keys: its configuration, flat.
        metrics: the lines of metrics.jsonl.
        summary: summary.json; {} for a run that has not ended.
        flops_per_token: of training: a forward and a backward pass.
        digests: of the data, the validation split and the tokenizers, as far as they are known.
    """

    folder: Path
    name: str
    keys: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    flops_per_token: float
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return str(self.keys.get("model.name", self.name))

    @property
    def seed(self) -> int | None:
        return self.keys.get(SEED)

    @property
    def task(self) -> str | None:
        return self.keys.get("task.name")

    @property
    def finished(self) -> bool:
        return self.status == "finished"

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
        """The summary's value, which is the best checkpoint's; without one, the last logged; NaN
        without any."""
        logged = [math.nan, *(value for _, value in self.curve(metric, "step"))]
        return float(self.summary.get(metric, logged[-1]))


def load(directories: Sequence[RunDirectory]) -> list[TrainingRun]:
    """Read runs; `groups.grouped` names them by what differs."""
    return [_read(directory) for directory in directories]


def _read(directory: RunDirectory) -> TrainingRun:
    config, summary = directory.config, directory.summary
    check_requirements(config, directory.path, "model")
    return TrainingRun(
        folder=directory.path,
        name=config["model"]["name"],
        keys=files.flat(config),
        metrics=directory.metrics(),
        summary=summary,
        flops_per_token=_flops(directory),
        digests=directory.digests(),
    )


def _flops(directory: RunDirectory) -> float:
    """FLOPs a token of training; NaN for a run that failed before it had a model."""
    from seqzoo.models.cost import flops_of_training
    from seqzoo.models.zoo import build, build_keys

    config, summary = directory.config, directory.summary
    if (known := summary.get("flops_per_token")) is not None:
        return float(known)
    try:
        sizes = directory.sizes()
    except UserError:
        return math.nan
    model = build(**{**build_keys(config), **sizes}).eval()
    return flops_of_training(model, summary.get("seq_len", config["task"].get("seq_len", 1)))


def differing_keys(runs: Sequence[TrainingRun]) -> list[str]:
    """The keys whose values are not the same in all runs that have them, the seed aside. A width
    that was solved for is left out."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    if any(run.keys.get("model.parameters") is not None for run in runs):
        keys.pop("model.dim", None)
    keys.pop(SEED, None)
    return [k for k in keys if len({repr(run.keys[k]) for run in runs if k in run.keys}) > 1]


def name_by_keys(run: TrainingRun, same_model: Sequence[TrainingRun]) -> str:
    """The model's name, and the keys by which the run differs from others of its model, if few."""
    keys = [
        f"{k.removesuffix('.name').rpartition('.')[2]}={shown(run.keys[k])}"
        for k in differing_keys(same_model)
        if k in run.keys
    ]
    name = " ".join([run.model, *keys])
    return name if len(name) <= LONGEST_NAME else run.model


def distinct_end(folder: Path, same: Sequence[Path]) -> str:
    """The shortest end of a path that none of the others has."""
    parts = folder.resolve().parts
    others = [path.resolve().parts for path in same if path != folder]
    n = next(n for n in range(1, 99) if all(other[-n:] != parts[-n:] for other in others))
    return "/".join(parts[-n:])
