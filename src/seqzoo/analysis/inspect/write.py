"""What an inspection leaves on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seqzoo.analysis.inspect.contexts import Contexts
from seqzoo.analysis.inspect.figures import figures
from seqzoo.analysis.inspect.measure import Findings
from seqzoo.report import figures as look
from seqzoo.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(name: str, found: Findings, run: RunDirectory) -> list[Path]:
    """Write the figures and inspect.json into the run's ``inspect/``, and a TensorBoard run.

    Returns:
        The PNG files.
    """
    run.inspect.mkdir(exist_ok=True)
    numbers = {
        "dependence": {label: values.tolist() for label, values in found.dependence.items()},
        "loss_by_position": found.positions.tolist(),
        "contexts": _contexts(found.contexts),
    }
    (run.inspect / "inspect.json").write_text(json.dumps(numbers, indent=1) + "\n")
    drawn = figures(name, found)
    _write_tensorboard(found, drawn, run.tensorboard / "inspect")
    return look.save(drawn, run.inspect)


def _contexts(found: Contexts) -> dict[str, Any]:
    rows = zip(found.words, found.counts, found.to_mean, found.between, strict=True)
    return {
        "stages": found.stages,
        "random_tokens": found.random.tolist(),
        "words": [
            {
                "word": word,
                "occurrences": count,
                "to_mean": to_mean.tolist(),
                "between_occurrences": between.tolist(),
            }
            for word, count, to_mean, between in rows
        ],
    }


def _write_tensorboard(found: Findings, drawn: Mapping[str, Figure], folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)  # those of an earlier inspection
    embeddings = {"input": found.embeddings, "contextual": found.contextual}
    with SummaryWriter(str(folder)) as board:
        for name, figure in drawn.items():
            board.add_figure(f"inspect/{name}", figure, close=False)
        for label, values in found.dependence.items():
            for distance, value in enumerate(values):
                board.add_scalar(f"inspect/dependence {label}", value, distance)
        for position, value in enumerate(found.positions, 1):
            board.add_scalar("inspect/loss_by_position", value, position)
        for tag, (vectors, labels) in embeddings.items():
            board.add_embedding(torch.from_numpy(vectors), metadata=labels, tag=tag)
