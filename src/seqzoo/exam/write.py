"""What an exam leaves on disk: exam.json, .csv, .md, figures, report.html, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from seqzoo.exam.figures import all_figures
from seqzoo.exam.results import COSTS, SCORE_COLUMNS, Results, columns, cost, score
from seqzoo.exam.words import sentences, shown
from seqzoo.report import figures, page, text
from seqzoo.report.text import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTES = """\
Scores are means over seeds, with the 95 % interval of the mean by Student's t distribution in
brackets. Each model has the learning rate that gave the first seed its best score in that ability,
so where several rates were tried that seed is the luckiest of several runs.
Colours of the heat map: percentages from 0 to 100, other columns from the worst to the best model,
costs on a logarithmic scale. State and memory are those of one sequence and of a training step, as
seqzoo bench measures them. A line joins the models that none beats in both numbers."""


def write(results: Results, folder: Path) -> str:
    """Write every file of an exam into its directory, the numbers first; returns the tables and
    the sentences in Markdown."""
    scored = {
        "exam.json": json.dumps(results, indent=1) + "\n",
        "exam.csv": text.to_csv(SCORE_COLUMNS, results["scores"]),
    }
    text.write(folder, scored)
    if not results["scores"]:
        return "nothing was finished: no score\n"
    drawn, said = all_figures(results), sentences(results)
    titled = list(tables(results))
    markdown = "".join(f"\n### {title}\n\n{text.markdown(*table)}" for title, table in titled)
    markdown += "\n### What the numbers say\n\n" + "".join(f"- {each}\n" for each in said)
    parts = [page.preformatted(about(results)), *map(figures.svg, drawn.values())]
    for title, table in titled:
        parts += [page.heading(title), page.table(*table)]
    parts += [page.heading("What the numbers say"), page.listed(said), f"<p>{NOTES}</p>"]
    figures.save(drawn, folder)
    pages = {
        "exam.md": f"```text\n{about(results)}\n```\n{markdown}\n{NOTES}\n",
        "report.html": page.page("seqzoo exam", *parts),
    }
    text.write(folder, pages)
    write_tensorboard(results, drawn, said, folder / "tensorboard")
    return markdown


def tables(results: Results) -> Iterator[tuple[str, Table]]:
    """Scores, and what each model costs."""
    names = columns(results)
    rows = []
    for model in results["models"]:
        found = [score(results, model, name) for name in names]
        rows.append([model, *("" if row is None else shown(row) for row in found)])
    yield "Scores", Table(["model", *names], rows)
    if results["costs"]:
        head = ["model", *(f"{title}, {unit}" for title, unit, *_ in COSTS.values())]
        yield (
            "Costs",
            Table(head, [[model, *_costs(results, model)] for model in results["models"]]),
        )
    head = ["model", "ability", "learning rate", "parameters", "dim", "steps"]
    chosen = [
        [
            *(row["model"], row["ability"], f"{row['rate']:g}"),
            *(number(row[key], 9) for key in ("parameters", "dim", "steps")),
        ]
        for row in results["scores"]
        if not row["ability"].endswith(", longer")
    ]
    yield "What was chosen", Table(head, chosen)


def _costs(results: Results, model: str) -> list[str]:
    values = [(cost(results, model, key), scale) for key, (_, _, scale, _) in COSTS.items()]
    return ["" if value is None else number(value / scale) for value, scale in values]


def about(results: Results) -> str:
    """Machine, command, date and effort, as text."""
    settings = results["exam"]
    size = f"{settings['parameters']:,} parameters" if settings["parameters"] else "own widths"
    done = sum(cell["status"] == "finished" for cell in results["cells"])
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    return (
        f"{results['machine']}; {size}; {settings['steps']:,} steps a cell, language "
        f"{settings['language_seconds']:g} s\n{results['command']}\n{results['date']}, "
        f"{results['seconds']:.0f} s of the last call, {done} of {results['planned']} cells\n"
        f"{versions}"
    )


def write_tensorboard(
    results: Results, drawn: dict[str, Figure], said: list[str], folder: Path
) -> None:
    """A TensorBoard run for each model: its scores and costs, and its curves, in which the step is
    the length or the number of pairs. One more run has the figures and the sentences."""
    from torch.utils.tensorboard import SummaryWriter

    for model in results["models"]:
        with SummaryWriter(str(folder / model)) as board:
            for name in columns(results):
                if (row := score(results, model, name)) is not None:
                    board.add_scalar(f"exam/{name}", row["mean"], 0)
            for key, (title, unit, scale, _) in COSTS.items():
                if (value := cost(results, model, key)) is not None:
                    board.add_scalar(f"exam_cost/{title}, {unit}", value / scale, 0)
            for curve in results["curves"]:
                if curve["model"] == model:
                    for place, value in curve["points"]:
                        tag = f"exam_by_{curve['axis']}/{curve['ability']}"
                        board.add_scalar(tag, value, place)
    with SummaryWriter(str(folder)) as board:
        for name, figure in drawn.items():
            board.add_figure(f"exam/{name}", figure)
        board.add_text("exam", "\n".join(f"- {each}" for each in said))
