"""A bench on disk: bench.json, bench.csv, bench.md, the figures, report.html, TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqzoo import report
from seqzoo.bench.figures import PANELS, figure, single
from seqzoo.bench.results import COLUMNS
from seqzoo.bench.tables import about, tables

NOTES = """\
A figure is the lower quartile over rounds, since a busy neighbour only ever slows one down; their
median and spread are in bench.csv. ± is the half width of the figure's interval of at least 95 %,
from what differs between rounds. Peak memory is the process's on a CPU (libraries included), the
allocator's on a GPU. State bytes are summed from the tensors. FLOPs are those of the definition
read token by token, a backward pass counted as two forward ones; peak_share in bench.csv is against
the matrix-product peak measured in the same run. Circles in the figure: at every longer length
measured a state that grows is the slower one."""


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Everything a bench leaves in its directory."""
    (folder / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "bench.csv").write_text(report.to_csv(COLUMNS, results["points"]))
    (folder / "bench.md").write_text(markdown(results))
    whole = figure(results)
    report.save(whole, folder / "bench")
    parts = [report.preformatted(about(results)), report.svg(whole), f"<p>{NOTES}</p>"]
    for title, head, rows in tables(results):
        parts += [report.heading(title), report.html_table(head, rows)]
    (folder / "report.html").write_text(report.page("seqzoo bench", *parts), encoding="utf-8")
    write_board(results, folder / "tensorboard")


def markdown(results: Mapping[str, Any]) -> str:
    """All tables and what they were made with."""
    text = "".join(
        f"\n### {title}\n\n{report.markdown(head, rows)}" for title, head, rows in tables(results)
    )
    return f"```text\n{about(results)}\n```\n{text}\n{NOTES}\n"


def write_board(results: Mapping[str, Any], folder: Path) -> None:
    """A TensorBoard run a model, whose step is the sequence length; `bench_log2/` has the same at
    step log2(length), because TensorBoard has no logarithmic axis to put it on. A run of its own
    has the layout that shows all models in one chart, the figures and the machine."""
    from torch.utils.tensorboard import SummaryWriter

    panels = [panel for panel in PANELS if panel.mode in results["bench"]["modes"]]
    for model in results["models"]:
        with SummaryWriter(str(folder / model)) as board:
            for panel in panels:
                for length, value in panel.curve(results, model):  # ascending, or they are dropped
                    board.add_scalar(f"bench/{panel.tag}", value, length)
                    if length & (length - 1) == 0:
                        board.add_scalar(f"bench_log2/{panel.tag}", value, int(math.log2(length)))
    with SummaryWriter(str(folder)) as board:
        charts = {
            f"{panel.name}, {panel.unit}": ["Multiline", [f"bench/{panel.tag}$"]]
            for panel in panels
        }
        twins = {
            f"{panel.name}, {panel.unit}": ["Multiline", [f"bench_log2/{panel.tag}$"]]
            for panel in panels
        }
        board.add_custom_scalars(
            {"against sequence length": charts, "against log2 of sequence length": twins}
        )
        for panel in panels:
            board.add_figure(f"bench/{panel.tag}", single(results, panel))
        board.add_text("bench", report.preformatted(about(results)))
