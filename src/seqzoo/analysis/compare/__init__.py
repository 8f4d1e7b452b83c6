"""Several training runs compared, and two benches.

runs        metrics of a run, and a name that differs from those of the others
lengths     scores of translations by the length of their sources
tables, figures     what is shown
benches     two benches, point by point
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqzoo.analysis.compare.runs import TrainingRun


def write(runs: Sequence[TrainingRun], metric: str, out: Path) -> str:
    """Write compare.json, .csv, .md, .png, .svg and report.html into `out`, the best run first.

    Where runs have scores by the length of their sources, lengths.png and .svg too.

    Returns:
        The tables in Markdown.
    """
    from seqzoo.analysis.compare import figures, lengths, tables
    from seqzoo.analysis.compare.runs import best_first
    from seqzoo.report import figures as look
    from seqzoo.report import page, text

    runs = best_first(runs, metric)
    out.mkdir(parents=True, exist_ok=True)
    records = [tables.record(run, metric) for run in runs]
    whole = {"metric": metric, "runs": records}
    (out / "compare.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "compare.csv").write_text(text.to_csv(list(records[0]), records), encoding="utf-8")
    shown = [tables.results(records, metric), tables.differences(runs)]
    colours = look.colours([run.name for run in runs])
    drawn = {"compare": figures.curves(runs, metric, colours)}
    if scores := lengths.find(runs):
        shown.append(scores.table())
        drawn["lengths"] = scores.figure(colours)
    shown = [table for table in shown if table.rows]
    markdown = "\n".join(text.markdown(*table) for table in shown) + tables.note(runs)
    (out / "compare.md").write_text(markdown, encoding="utf-8")
    look.save(drawn, out)
    parts = [*map(look.svg, drawn.values()), *(page.table(*table) for table in shown)]
    html = page.page(f"seqzoo compare: {metric}", *parts)
    (out / "report.html").write_text(html, encoding="utf-8")
    return markdown
