"""A logger and a hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Text
from seqzoo.runs.directory import RunDirectory
from seqzoo.training.hooks import Hook
from seqzoo.training.training import Training


class Lines:
    """Scalars as lines `step tag value` of a file in the run directory."""

    @checked()
    def __init__(self, *, file: Text) -> None:
        self.file = file

    def start(
        self,
        directory: RunDirectory,
        config: Mapping[str, Any],
        *,
        step: int,
        metrics: Sequence[str],
    ) -> None:
        self.path = directory.path / self.file
        before = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        self.path.write_text("".join(line for line in before if int(line.split()[0]) <= step))

    def scalars(self, values: Mapping[str, float], position: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{position['step']} {tag} {value}\n" for tag, value in values.items())

    def text(self, tag: str, text: str, step: int) -> None:
        pass

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        pass

    def close(self, summary: Mapping[str, Any]) -> None:
        pass


class WeightNorm(Hook):
    """Logs the Euclidean norm of all weights."""

    @checked()
    def __init__(self, *, every: Count) -> None:
        self.every = every

    def on_step(self, training: Training) -> None:
        norm = sum(float(p.detach().square().sum()) for p in training.model.parameters()) ** 0.5
        training.loggers.scalars({"train/weight_norm": norm}, training.position())
