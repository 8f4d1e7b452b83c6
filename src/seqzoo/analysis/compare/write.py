"""What a comparison of runs shows, and leaves on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqzoo.analysis.compare import fair, figures, tables
from seqzoo.analysis.compare.groups import Group, best_first, grouped, mean_curve
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
    """Write compare.json, .csv, .md, .png, .svg, curves.csv, report.html and tensorboard into
    `out`, the best runs first. The runs were evaluated on the same data.

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
    write_tensorboard(groups, metric, out / "tensorboard")
    return markdown


OURS = ".compare"  # ends the names of a comparison's event files


def write_tensorboard(groups: Sequence[Group], metric: str, folder: Path) -> None:
    """A TensorBoard run for each group: its mean curve against steps, and of several seeds one
    standard deviation to each side. One more run has the layout: the curves of all groups in one
    chart, and their bands in another.

    Event files of an earlier comparison in the folder are removed first; those of others stay.
    """
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.rglob(f"events.out.tfevents.*{OURS}"):
        old.unlink()
    tag = re.sub(r"[^-/\w.]", "_", metric)  # as SummaryWriter does, in tags but not in layouts
    band = [f"compare_band{part}/{tag}" for part in ("", "_low", "_high")]
    charts: dict[str, list[Any]] = {metric: ["Multiline", [f"{re.escape(f'compare/{tag}')}$"]]}
    for group in groups:
        steps, mean, deviation = mean_curve(group, metric, "step")
        curves = {f"compare/{tag}": mean}
        if deviation is not None:  # the mean again: a run with it and no band is shown as an error
            curves |= zip(band, (mean, mean - deviation, mean + deviation), strict=True)
            charts[f"{metric}, mean and sd of seeds"] = ["Margin", band]
        with SummaryWriter(str(folder / _place(group.name)), filename_suffix=OURS) as board:
            for name, values in curves.items():
                for step, value in zip(steps, values, strict=True):
                    board.add_scalar(name, value, int(step))
    with SummaryWriter(str(folder), filename_suffix=OURS) as board:
        board.add_custom_scalars({"comparison": charts})


def _place(name: str) -> Path:
    """A group's name as the path of its TensorBoard run, which TensorBoard shows as its name."""
    parts = re.sub(r'[\\:*?"<>|]', "_", name).split("/")
    return Path(*(part for part in parts if part not in ("", ".", "..")))


def of_a_sweep(runs: Sequence[TrainingRun]) -> str:
    """Short tables for the terminal, the best runs first: results, and where there are seeds the
    paired differences from the best. Both for each of several data sets."""
    parts = []
    for each in fair.comparable(runs):
        try:
            metric = fair.pick_metric(each, None)
        except UserError:  # nothing was measured
            metric = "val/loss"
        groups = best_first(grouped(each), metric)
        found = [
            tables.results(groups, metric, ("parameters", "train_seconds")),
            tables.against_best(groups, metric),
        ]
        parts += [text.markdown(*table) for table in found if table.rows]
        parts += filter(None, [fair.why(each, metric)])
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
