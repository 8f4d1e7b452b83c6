"""The figure of compared runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from seqzoo.analysis.compare.runs import TrainingRun
from seqzoo.report import figures as look
from seqzoo.report.figures import Colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"step": "steps", "tokens": "tokens", "seconds": "seconds", "flops": "FLOPs"}


@look.style()
def curves(runs: Sequence[TrainingRun], metric: str, colours: Mapping[str, Colour]) -> Figure:
    """The metric against steps, tokens, seconds and FLOPs."""
    whole = look.new_figure(10, 7)
    panels = whole.subplots(2, 2, sharey=True).flat
    for axes, (axis, label) in zip(panels, AXES.items(), strict=True):
        for run in runs:
            if curve := run.curve(metric, axis):
                x, y = zip(*curve, strict=True)
                axes.plot(x, y, marker="o", color=colours[run.name], label=run.name)
        axes.set(xlabel=label, ylabel=metric)
    look.legend_below(whole, 4)
    return whole
