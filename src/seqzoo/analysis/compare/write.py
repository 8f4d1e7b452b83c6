"""What a comparison of runs shows, and leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqzoo.analysis.compare import fair, figures, tables
from seqzoo.analysis.compare.groups import Group, best_first, grouped
from seqzoo.analysis.compare.runs import TrainingRun
from seqzoo.errors import UserError
from seqzoo.report import figures as look
from seqzoo.report import page, text

SPREAD = """\
A row of several seeds shows their mean, sd is their standard deviation (n - 1), and the band in the
figure one of them to each side of the mean; between two evaluations a curve is a straight line.
"""
PAIRED = """\
Two rows are compared over the seeds that both have, as runs of one seed read the same batches: the
mean of the differences, and its 95 % interval by the paired t test. "apart": the interval leaves
out zero; of twenty intervals between equals one does so by chance. Two seeds give a wide interval,
five a useful one.
"""
UNRANKED = "Runs that did not finish are drawn dotted and come last, without a rank.\n"


def write(runs: Sequence[TrainingRun], metric: str, out: Path) -> str:
    """Write compare.json, .csv, .md, .png, .svg, curves.csv and report.html into `out`, the best
    runs first. The runs were evaluated on the same data.

    Where runs have scores by the length of their sources, lengths.png and .svg too.

    Returns:
        The tables in Markdown.
    """
    groups = best_first(grouped(runs), metric)
    ordered = [run for group in groups for run in group.runs]
    records = [tables.record(run, group, metric) for group in groups for run in group.runs]
    shown = [
        tables.results(groups, metric),
        tables.against_best(groups, metric),
        tables.differences(groups),
    ]
    found = figures.colours(groups)
    drawn = {"compare": figures.curves(groups, metric, found)}
    if scores := figures.by_length(ordered):
        shown.append(scores.table())
        own = {run.name: found[group.name] for group in groups for run in group.runs}
        drawn["lengths"] = scores.figure(own)
    notes = _notes(groups, metric, paired=bool(shown[1].rows))
    shown = [table for table in shown if table.rows]
    markdown = "\n".join([*(text.markdown(*table) for table in shown), *notes])
    parts = [*map(look.svg, drawn.values()), *(page.table(*table) for table in shown)]
    parts += [f"<p>{note}</p>" for note in notes]
    files = {
        "compare.json": json.dumps({"metric": metric, "runs": records}, indent=1) + "\n",
        "compare.csv": text.to_csv(list(records[0]), records),
        "curves.csv": text.to_csv(CURVE, _points(groups, metric)),
        "compare.md": markdown,
        "report.html": page.page(f"seqzoo compare: {metric}", *parts),
    }
    out.mkdir(parents=True, exist_ok=True)
    text.write(out, files)
    look.save(drawn, out)
    return markdown


def of_a_sweep(runs: Sequence[TrainingRun]) -> str:
    """A short table for the terminal, the best runs first; one for each of several data sets."""
    parts = []
    for each in fair.comparable(runs):
        try:
            metric = fair.pick_metric(each, None)
        except UserError:  # nothing was measured
            metric = "val/loss"
        groups = best_first(grouped(each), metric)
        table = tables.results(groups, metric, ("parameters", "train_seconds"))
        parts += [text.markdown(*table), *filter(None, [fair.why(each, metric)])]
    return "\n".join(parts)


def _notes(groups: Sequence[Group], metric: str, *, paired: bool) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    return [
        *filter(None, [fair.why(runs, metric)]),
        *([SPREAD] if len(runs) > len(groups) else []),
        *([PAIRED] if paired else []),
        *([] if all(run.finished for run in runs) else [UNRANKED]),
    ]


CURVE = ("configuration", "seed", "step", "tokens", "seconds", "flops", "value")


def _points(groups: Sequence[Group], metric: str) -> list[dict[str, Any]]:
    """Every logged value of the metric, a row each."""
    return [
        {
            **{"configuration": group.name, "seed": run.seed, "value": line[metric]},
            **{key: line[key] for key in ("step", "tokens", "seconds")},
            "flops": line["tokens"] * run.flops_per_token,
        }
        for group in groups
        for run in group.runs
        for line in run.metrics
        if line.get(metric) is not None
    ]
