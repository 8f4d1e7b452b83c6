"""Validation loss against training seconds, a curve a run.

python scripts/plot_runs.py OUT.svg RUN...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

plt.rcParams["svg.hashsalt"] = "seqzoo"  # the same figure is the same file


def main(out: str, *folders: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    ends = []
    for folder in map(Path, folders):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        points = [
            (line["seconds"], line["val/stream_loss"])
            for line in lines
            if "val/stream_loss" in line
        ]
        summary = json.loads((folder / "summary.json").read_text())
        name = f"{summary['model']} {summary['val/stream_loss']:.3f}"  # of the best checkpoint
        (curve,) = axes.plot(*zip(*points, strict=True), marker=".", label=name)
        ends.append((points[-1], name, curve.get_color()))
    last = 0.0
    for (x, y), name, color in sorted(ends, key=lambda end: end[0][1]):
        last = max(y, last + 0.022)  # labels apart
        axes.annotate(f" {name}", (x, y), (x + 4, last), color=color, va="center", fontsize=8)
    axes.set(xlabel="seconds of training", ylabel="validation loss, nats a character (stream)")
    axes.set_xlim(0, 1.3 * max(x for (x, _), _, _ in ends))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
