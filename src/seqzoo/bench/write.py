"""What a bench leaves on disk: bench.json, .csv, .md, .png, .svg, report.html, TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from seqzoo.bench.figures import PANELS, WORK, Panel, Results, figure, measured_panels, subtitle
from seqzoo.bench.results import COLUMNS, FIGURES, crossovers
from seqzoo.report import figures, page, text
from seqzoo.report.text import Table, length, number

NOTES = """\
A figure is the lower quartile over rounds, since a busy neighbour only ever slows one down; their
median and spread are in bench.csv. ± is the half width of the figure's interval of at least 95 %,
from what differs between rounds. Peak memory is the process's on a CPU (libraries included), the
allocator's on a GPU; memory over base is the peak less what was held before there was a model, so
that of weights, optimiser and activations alone. State bytes are summed from the tensors. FLOPs are
those of the definition read token by token, a backward pass counted as two forward ones. The share
of the machine's peak (model FLOPs utilisation, MFU) is FLOPs a second, divided by those of the
matrix products that were measured in the same run; bench.csv has it of every mode, as peak_share.
Circles in the figure: at every longer length measured a state that grows is the slower one."""


def write(results: Results, folder: Path) -> str:
    """Write every file of a bench into its directory, the measurements first; returns the tables in
    Markdown."""
    measured = {
        "bench.json": json.dumps(results, indent=1) + "\n",
        "bench.csv": text.to_csv(COLUMNS, results["points"]),
    }
    text.write(folder, measured)
    found = list(tables(results))
    markdown = "".join(f"\n### {title}\n\n{text.markdown(*table)}" for title, table in found)
    whole = figure(results, measured_panels(results))
    parts = [page.preformatted(about(results)), figures.svg(whole), f"<p>{NOTES}</p>"]
    for title, table in found:
        parts += [page.heading(title), page.table(*table)]
    figures.save({"bench": whole}, folder)
    pages = {
        "bench.md": f"```text\n{about(results)}\n```\n{markdown}\n{NOTES}\n",
        "report.html": page.page("seqzoo bench", *parts),
    }
    text.write(folder, pages)
    write_tensorboard(results, folder / "tensorboard")
    return markdown


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
    charts = {  # a chart for each panel, with the curves of all models
        title: {
            f"{panel.name}, {panel.unit}": ["Multiline", [f"{prefix}/{panel.tag}$"]]
            for panel in panels
        }
        for title, prefix in (
            ("against sequence length", "bench"),
            ("against log2 of sequence length", "bench_log2"),
        )
    }
    with SummaryWriter(str(folder)) as board:
        board.add_custom_scalars(charts)
        for panel in panels:
            board.add_figure(f"bench/{panel.tag}", figure(results, [panel]))
        board.add_text("bench", page.preformatted(about(results)))


# The quantities whose longest length is compared with a short one, and that short length.
AGAINST = [
    (panel, 128 if panel.mode == "decode" else 512) for panel in PANELS if "peak" not in panel.tag
]
Titled = tuple[str, Table]


def tables(results: Results) -> Iterator[Titled]:
    """The models, each quantity by length, exponents and crossovers; what is empty is left out."""
    found = [
        _models(results),
        *(_by_length(results, panel) for panel in (*measured_panels(results), WORK)),
        _long_against_short(results),
        _exponents(results),
        _crossovers(results),
    ]
    return (titled for titled in found if titled[1].rows)


def _models(results: Results) -> Titled:
    rows = []
    for model, about in results["models"].items():
        modes: dict[str, list[str]] = {}  # by the forms and kernels that ran in them
        for row in results["points"]:
            if row["model"] == model and row["backend"]:
                same = modes.setdefault(row["backend"], [])
                same += [row["mode"]] * (row["mode"] not in same)
        several = "; ".join(f"{ran} ({', '.join(same)})" for ran, same in modes.items())
        rows.append(
            [
                model,
                number(about["parameters"], 9),
                str(about["keys"]["dim"]),
                number(about["flops_first"], 9),
                next(iter(modes)) if len(modes) == 1 else several,
            ]
        )
    head = ["model", "parameters", "dim", "FLOPs of the first token", "what ran"]
    return "Models", Table(head, rows)


def _by_length(results: Results, panel: Panel) -> Titled:
    models = list(results["models"])
    cells: dict[int, dict[str, str]] = {}
    for row in results["points"]:
        if row["mode"] != panel.mode:
            continue
        cell = row["status"]
        if cell == "ok":
            cell = number(row[panel.column] / panel.scale)
            if panel.has_noise and row["noise"] is not None:
                cell += f" ± {100 * row['noise']:.0f} %"
        cells.setdefault(row["length"], {})[row["model"]] = cell
    rows = [[length(T), *(by.get(m, "") for m in models)] for T, by in sorted(cells.items())]
    return panel.title[0].upper() + panel.title[1:], Table(["T", *models], rows)


def _long_against_short(results: Results) -> Titled:
    """Each quantity at its longest length, as a multiple of its value at a short one."""
    rows = []
    for model in results["models"]:
        row = [model]
        for panel, short in AGAINST:
            values = dict(panel.curve(results, model))
            last = max(values, default=0)
            known = short in values and last > short
            row.append(f"{values[last] / values[short]:.2f} ({length(last)})" if known else "")
        rows.append(row)
    head = ["model", *(f"{panel.name}, T against {short}" for panel, short in AGAINST)]
    known_rows = rows if any(cell for row in rows for cell in row[1:]) else []
    return "The longest length against a short one", Table(head, known_rows)


def _exponents(results: Results) -> Titled:
    found = {(e["model"], e["mode"]): e for e in results["exponents"]}
    modes = [mode for mode in FIGURES if mode in results["bench"]["modes"]]
    head = ["model", *(cell for mode in modes for cell in (mode, "theory"))]
    rows = []
    for model in results["models"]:
        row = [model]
        for mode in modes:
            e = found.get((model, mode))
            error = f" ± {e['error']:.2f}" if e and e["error"] is not None else ""
            row += [f"{e['exponent']:.2f}{error}", str(e["theory"])] if e else ["", ""]
        rows.append(row)
    spans = sorted({f"{length(e['from'])} to {length(e['to'])}" for e in found.values()})
    title = f"Time grows as T to the power of (T from {', '.join(spans)})"
    return title, Table(head, rows if found else [])


def _crossovers(results: Results) -> Titled:
    rows = [
        [c["mode"], c["growing"], c["bounded"], number(round(c["length"]), 2)]
        for c in crossovers(results["points"], results["models"])
    ]
    return "Where a growing state falls behind", Table(["mode", "growing", "bounded", "T"], rows)


def about(results: Results) -> str:
    """Machine, command, date and versions, as text."""
    machine, rounds = results["machine"], results["bench"]["rounds"]
    done = results.get("rounds_done", rounds)
    measured = f"{rounds} rounds" if done == rounds else f"stopped after {done} of {rounds} rounds"
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    return (
        f"{subtitle(results)}\n{results['command']}\n{results['date']}, "
        f"{results['seconds']:.0f} s, {measured}\n"
        f"matrix products at {machine['peak_flops'] / 1e9:,.0f} GFLOP/s "
        f"({machine['peak_measured_by']})\n{versions}"
    )
