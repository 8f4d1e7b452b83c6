"""What a comparison of runs shows, and leaves on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo.analysis.compare.runs import TrainingRun, best_first, differing_keys
from seqzoo.config.values import shown
from seqzoo.report import figures as look
from seqzoo.report import page, text
from seqzoo.report.figures import Colour
from seqzoo.report.text import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(runs: Sequence[TrainingRun], metric: str, out: Path) -> str:
    """Write compare.json, .csv, .md, .png, .svg and report.html into `out`, the best run first.

    Where runs have scores by the length of their sources, lengths.png and .svg too.

    Returns:
        The tables in Markdown.
    """
    runs = best_first(runs, metric)
    records = [record(run, metric) for run in runs]
    tables = [results(records, metric), differences(runs)]
    colours = look.colours([run.name for run in runs])
    drawn = {"compare": curves(runs, metric, colours)}
    if scores := by_length(runs):
        tables.append(scores.table())
        drawn["lengths"] = scores.figure(colours)
    tables = [table for table in tables if table.rows]
    markdown = "\n".join(text.markdown(*table) for table in tables) + note(runs)
    parts = [*map(look.svg, drawn.values()), *(page.table(*table) for table in tables)]
    files = {
        "compare.json": json.dumps({"metric": metric, "runs": records}, indent=1) + "\n",
        "compare.csv": text.to_csv(list(records[0]), records),
        "compare.md": markdown,
        "report.html": page.page(f"seqzoo compare: {metric}", *parts),
    }
    out.mkdir(parents=True, exist_ok=True)
    text.write(out, files)
    look.save(drawn, out)
    return markdown


SHOWN = ("parameters", "steps", "tokens", "train_seconds", "tokens_per_second", "flops")


def record(run: TrainingRun, metric: str) -> dict[str, Any]:
    """A run as compare.json and compare.csv hold it."""
    last = run.metrics[-1]
    known = {"steps": last["step"], "tokens": last["tokens"], **run.summary}
    known["flops"] = known["tokens"] * run.flops_per_token
    return {
        "run": run.name,
        metric: run.result(metric),
        **{key: known.get(key) for key in SHOWN},
        "status": run.status,
        "folder": str(run.folder),
    }


def results(records: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """The result and the cost of each run, in their order."""
    rows = []
    for each in records:
        digits = {key: 15 if isinstance(each[key], int) else 3 for key in SHOWN}
        cells = {key: number(each[key], digits[key]) for key in SHOWN}
        cells["flops"] = f"{each['flops']:.2e}"
        rows.append([each["run"], f"{each[metric]:.4f}", *cells.values(), each["status"]])
    return Table(["run", metric, *SHOWN, "status"], rows)


def differences(runs: Sequence[TrainingRun]) -> Table:
    """The keys whose values differ; the cell of a run without the key is empty."""
    keys = [key for key in differing_keys(runs) if key != "model.name"]
    rows = [
        [run.name, *(shown(run.keys[key]) if key in run.keys else "" for key in keys)]
        for run in runs
    ]
    return Table(["run", *keys], rows if keys else [])


def note(runs: Sequence[TrainingRun]) -> str:
    if len({run.summary.get("data_sha256") for run in runs} - {None}) > 1:
        return "\nThe runs were trained or evaluated on different data.\n"
    return ""


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
        rows = [
            [name, *(number(values.get(length)) for length in self.bins)]
            for name, values in self.scores.items()
        ]
        return Table([f"{self.metric} by {self.unit} of the source", *self.bins], rows)

    @look.style()
    def figure(self, colours: Mapping[str, Colour]) -> Figure:
        whole = look.new_figure(6.4, 4.4)
        axes = whole.subplots()
        for name, values in self.scores.items():
            places = [self.bins.index(length) for length in values]
            axes.plot(places, list(values.values()), marker="o", color=colours[name], label=name)
        axes.set_xticks(range(len(self.bins)), self.bins)
        axes.set(xlabel=f"{self.unit} of the source", ylabel=self.metric, ylim=(0, None))
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
