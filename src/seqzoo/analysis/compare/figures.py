"""The figures of a comparison of runs: curves, and scores by the length of the source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqzoo.analysis.compare.groups import Group, mean_curve
from seqzoo.analysis.compare.runs import TrainingRun
from seqzoo.report import figures as look
from seqzoo.report.figures import Colour
from seqzoo.report.text import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"step": "steps", "tokens": "tokens", "seconds": "seconds", "flops": "FLOPs"}


def colours(groups: Sequence[Group]) -> dict[str, Colour]:
    """A colour for each group: that of its family, where it is the only group of it."""
    families = [group.runs[0].model for group in groups]
    names = {
        group.name: family if families.count(family) == 1 else group.name
        for group, family in zip(groups, families, strict=True)
    }
    found = look.colours(list(names.values()))
    return {group: found[name] for group, name in names.items()}


@look.style()
def curves(groups: Sequence[Group], metric: str, colours: Mapping[str, Colour]) -> Figure:
    """The metric against steps, tokens, seconds and FLOPs: a line a group, of several seeds their
    mean, within a band of one standard deviation to each side."""
    whole = look.new_figure(10, 7)
    panels = whole.subplots(2, 2, sharey=True).flat
    for axes, (axis, label) in zip(panels, AXES.items(), strict=True):
        for group in groups:
            x, mean, deviation = mean_curve(group, metric, axis)
            if not len(x):
                continue
            colour = colours[group.name]
            dashes = "-" if group.ranked else ":"
            axes.plot(x, mean, dashes, marker="o", color=colour, label=_label(group))
            if deviation is not None:
                low, high = mean - deviation, mean + deviation
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel=label, ylabel=metric)
    look.legend_below(whole, 4)
    return whole


def _label(group: Group) -> str:
    seeds = len(group.ranked or group.runs)
    several = f" ({seeds} seeds)" if seeds > 1 else ""
    return f"{group.name}{several}" if group.ranked else f"{group.name}, {group.status}"


@dataclass
class Lengths:
    """A metric of several runs by the length of the source: {run: {"06-10": value}}.

    Attributes:
        unit: in which the source's length is counted, such as words.
    """

    metric: str
    unit: str
    scores: dict[str, dict[str, float]]

    @property
    def bins(self) -> list[str]:
        """The ranges of lengths that any run has, ascending."""
        return sorted({length for values in self.scores.values() for length in values})

    @property
    def of(self) -> str:
        """What is counted: of a pair, the source; of a probe, its whole example."""
        return f"{self.unit} of the source" if self.unit == "words" else self.unit

    def table(self) -> Table:
        rows = [
            [name, *(number(values.get(length)) for length in self.bins)]
            for name, values in self.scores.items()
        ]
        return Table([f"{self.metric} by {self.of}", *self.bins], rows)

    @look.style()
    def figure(self, colours: Mapping[str, Colour]) -> Figure:
        whole = look.new_figure(6.4, 4.4)
        axes = whole.subplots()
        for name, values in self.scores.items():
            places = [self.bins.index(length) for length in values]
            axes.plot(places, list(values.values()), marker="o", color=colours[name], label=name)
        axes.set_xticks(range(len(self.bins)), self.bins)
        axes.set(xlabel=self.of, ylabel=self.metric, ylim=(0, None))
        look.legend_below(whole, 2)
        return whole


def by_length(runs: Sequence[TrainingRun]) -> Lengths | None:
    """The score by length that most of the runs have in their summaries, such as
    `test/bleu_by_words/06-10`; those on test come before those on val."""
    for split in ("test", "val"):
        pattern = re.compile(rf"({split}/\w+)_by_(\w+)/(.+)")
        found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        for run in runs:
            for key, value in run.summary.items():
                if match := pattern.fullmatch(key):
                    metric, unit, length = match.groups()
                    scores = found.setdefault((metric, unit), {})
                    scores.setdefault(run.name, {})[length] = value
        if found:
            (metric, unit), scores = max(found.items(), key=lambda item: len(item[1]))
            return Lengths(metric, unit, scores)
    return None
