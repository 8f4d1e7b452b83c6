"""The tables of a bench, as rows of text: Markdown and HTML are made of the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from seqzoo.bench.figures import PANELS, subtitle
from seqzoo.bench.results import FIGURES, crossovers
from seqzoo.report import length, number

KEPT = [  # a quantity, and the short length that its longest is held against
    (panel, 128 if panel.mode == "decode" else 512) for panel in PANELS if "peak" not in panel.tag
]
Table = tuple[str, list[str], list[list[str]]]  # title, head, rows


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """What was matched, each quantity by length, exponents, crossovers."""
    yield _matched(results)
    for panel in PANELS:
        if panel.mode in results["bench"]["modes"]:
            yield _by_length(results, panel)
    if rows := _kept(results):
        head = ["model", *(f"{panel.name}, T against {ref}" for panel, ref in KEPT)]
        yield "The longest length against a short one", head, rows
    if results["exponents"]:
        yield _exponents(results)
    if rows := _crossovers(results):
        yield "Where a growing state falls behind", ["mode", "growing", "bounded", "T"], rows


def _matched(results: Mapping[str, Any]) -> Table:
    rows = []
    for model, about in results["models"].items():
        ran: dict[str, list[str]] = {}  # modes by what ran in them
        for row in results["points"]:
            if row["model"] == model and row["backend"]:
                modes = ran.setdefault(row["backend"], [])
                modes += [row["mode"]] * (row["mode"] not in modes)
        said = [f"{what} ({', '.join(modes)})" for what, modes in ran.items()]
        rows.append(
            [
                model,
                number(about["parameters"], 9),
                str(about["keys"]["dim"]),
                number(about["flops_first"], 9),
                said[0].partition(" (")[0] if len(said) == 1 else "; ".join(said),
            ]
        )
    head = ["model", "parameters", "dim", "FLOPs of the first token", "what ran"]
    return "Models", head, rows


def _by_length(results: Mapping[str, Any], panel: Any) -> Table:
    models = list(results["models"])
    cells: dict[int, dict[str, str]] = {}
    for row in results["points"]:
        if row["mode"] != panel.mode:
            continue
        if row["status"] != "ok":
            text = row["status"]
        else:
            text = number(row[panel.column] / panel.scale)
            if row["noise"] is not None and panel.column in ("tokens_per_second", "milliseconds"):
                text += f" ± {100 * row['noise']:.0f} %"
        cells.setdefault(row["length"], {})[row["model"]] = text
    rows = [[length(T), *(by.get(m, "") for m in models)] for T, by in sorted(cells.items())]
    return panel.title[0].upper() + panel.title[1:], ["T", *models], rows


def _kept(results: Mapping[str, Any]) -> list[list[str]]:
    """Each quantity at its longest length, as a multiple of what it is at a short one."""
    rows = []
    for model in results["models"]:
        row = [model]
        for panel, short in KEPT:
            values = dict(panel.curve(results, model))
            last = max(values, default=0)
            known = short in values and last > short
            row.append(f"{values[last] / values[short]:.2f} ({length(last)})" if known else "")
        rows.append(row)
    return rows if any(cell for row in rows for cell in row[1:]) else []


def _exponents(results: Mapping[str, Any]) -> Table:
    found = {(e["model"], e["mode"]): e for e in results["exponents"]}
    modes = [mode for mode in FIGURES if mode in results["bench"]["modes"]]
    head = ["model", *(text for mode in modes for text in (mode, "theory"))]
    rows = []
    for model in results["models"]:
        row = [model]
        for mode in modes:
            e = found.get((model, mode))
            error = f" ± {e['error']:.2f}" if e and e["error"] is not None else ""
            row += [f"{e['exponent']:.2f}{error}", str(e["theory"])] if e else ["", ""]
        rows.append(row)
    spans = {f"{length(e['from'])} to {length(e['to'])}" for e in found.values()}
    return f"Time grows as T to the power of (T from {', '.join(sorted(spans))})", head, rows


def _crossovers(results: Mapping[str, Any]) -> list[list[str]]:
    return [
        [c["mode"], c["growing"], c["bounded"], number(round(c["length"]), 2)]
        for c in crossovers(results["points"], results["models"])
    ]


def about(results: Mapping[str, Any]) -> str:
    """Command, machine and date, as text."""
    machine, asked = results["machine"], results["bench"]["rounds"]
    done = results.get("rounds_done", asked)
    rounds = f"{asked} rounds" if done == asked else f"stopped after {done} of {asked} rounds"
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    return (
        f"{subtitle(results)}\n{results['command']}\n{results['date']}, "
        f"{results['seconds']:.0f} s, {rounds}\n"
        f"matrix products at {machine['peak_flops'] / 1e9:,.0f} GFLOP/s "
        f"({machine['peak_measured_by']})\n{versions}"
    )
