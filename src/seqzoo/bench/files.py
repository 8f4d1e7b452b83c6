"""A bench on disk: bench.json, bench.csv, bench.md, the figures, report.html, TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from seqzoo.bench.figures import Results, figure, measured_panels, single
from seqzoo.bench.rows import COLUMNS
from seqzoo.bench.tables import about, markdown, tables
from seqzoo.report import figures, page, text

NOTES = """\
A figure is the lower quartile over rounds, since a busy neighbour only ever slows one down; their
median and spread are in bench.csv. ± is the half width of the figure's interval of at least 95 %,
from what differs between rounds. Peak memory is the process's on a CPU (libraries included), the
allocator's on a GPU. State bytes are summed from the tensors. FLOPs are those of the definition
read token by token, a backward pass counted as two forward ones; peak_share in bench.csv is against
the matrix-product peak measured in the same run. Circles in the figure: at every longer length
measured a state that grows is the slower one."""


def write(results: Results, folder: Path) -> None:
    """Write every file of a bench into its directory."""
    (folder / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "bench.csv").write_text(text.to_csv(COLUMNS, results["points"]))
    described = f"```text\n{about(results)}\n```\n{markdown(results)}\n{NOTES}\n"
    (folder / "bench.md").write_text(described)
    whole = figure(results)
    figures.save({"bench": whole}, folder)
    parts = [page.preformatted(about(results)), figures.svg(whole), f"<p>{NOTES}</p>"]
    for title, table in tables(results):
        parts += [page.heading(title), page.table(*table)]
    (folder / "report.html").write_text(page.page("seqzoo bench", *parts), encoding="utf-8")
    write_tensorboard(results, folder / "tensorboard")


def write_tensorboard(results: Results, folder: Path) -> None:
    """A TensorBoard run for each model, in which the step is the sequence length.

    TensorBoard has no logarithmic axis, so `bench_log2/` has the same values at step log2(length).
    One more run has the layout that shows all models in one chart, the figures and the machine.
    """
    from torch.utils.tensorboard import SummaryWriter

    panels = measured_panels(results)
    for model in results["models"]:
        with SummaryWriter(str(folder / model)) as board:
            for panel in panels:
                for length, value in panel.curve(results, model):  # it drops descending steps
                    board.add_scalar(f"bench/{panel.tag}", value, length)
                    if length & (length - 1) == 0:
                        board.add_scalar(f"bench_log2/{panel.tag}", value, int(math.log2(length)))
    with SummaryWriter(str(folder)) as board:
        board.add_custom_scalars(
            {
                "against sequence length": _charts(results, "bench"),
                "against log2 of sequence length": _charts(results, "bench_log2"),
            }
        )
        for panel in panels:
            board.add_figure(f"bench/{panel.tag}", single(results, panel))
        board.add_text("bench", page.preformatted(about(results)))


def _charts(results: Results, prefix: str) -> dict[str, Any]:
    """A chart for each panel, with the curves of all models."""
    return {
        f"{panel.name}, {panel.unit}": ["Multiline", [f"{prefix}/{panel.tag}$"]]
        for panel in measured_panels(results)
    }
