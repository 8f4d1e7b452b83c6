"""Scores of translations by the length of their sources."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqzoo.analysis.compare.runs import TrainingRun
from seqzoo.report import figures as look
from seqzoo.report.figures import Colour
from seqzoo.report.text import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def table(self) -> Table:
        """A row a run, a column a range of lengths."""
        rows = [
            [name, *(number(values.get(length)) for length in self.bins)]
            for name, values in self.scores.items()
        ]
        return Table([f"{self.metric} by {self.unit} of the source", *self.bins], rows)

    @look.style()
    def figure(self, colours: Mapping[str, Colour]) -> Figure:
        """A curve a run, in its colour."""
        whole = look.new_figure(6.4, 4.4)
        axes = whole.subplots()
        for name, values in self.scores.items():
            places = [self.bins.index(length) for length in values]
            axes.plot(places, list(values.values()), marker="o", color=colours[name], label=name)
        axes.set_xticks(range(len(self.bins)), self.bins)
        axes.set(xlabel=f"{self.unit} of the source", ylabel=self.metric, ylim=(0, None))
        look.legend_below(whole, 2)
        return whole


def find(runs: Sequence[TrainingRun]) -> Lengths | None:
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
