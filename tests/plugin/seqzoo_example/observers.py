"""A logger and a hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Text
from seqzoo.training.hooks import Hook


class Lines:
    """Scalars as lines of text in a file of the run directory."""

    @checked()
    def __init__(self, *, file: Text) -> None:
        self.file = file

    def start(self, directory: Any, config: Any, *, step: int, metrics: Any) -> None:
        self.path = Path(directory.path, self.file)

    def scalars(self, values: Any, position: Any) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{position['step']} {tag} {value}\n" for tag, value in values.items())

    def text(self, tag: str, text: str, step: int) -> None:
        pass

    def figures(self, figures: Any, step: int) -> None:
        pass

    def close(self, summary: Any) -> None:
        pass


class WeightNorm(Hook):
    """Logs the norm of all weights."""

    @checked()
    def __init__(self, *, every: Count) -> None:
        self.every = every

    def on_step(self, training: Any) -> None:
        norm = sum(float(p.detach().square().sum()) for p in training.model.parameters()) ** 0.5
        training.loggers.scalars({"train/weight_norm": norm}, training.position())
