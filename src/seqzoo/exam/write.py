"""What an exam leaves on disk: exam.json, .csv, .md, figures, report.html, TensorBoard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo.exam.figures import FIGURES, all_figures
from seqzoo.exam.plan import LONGER
from seqzoo.exam.results import COSTS, SCORE_COLUMNS, Results, columns, cost, score
from seqzoo.exam.words import sentences, shown
from seqzoo.report import figures, page, text
from seqzoo.report.text import Table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN = ("exam.json", "exam.csv", "exam.md", "report.html")
NOTES = """\
Scores are means over seeds, with the 95 % interval of the mean by Student's t distribution in
brackets; without brackets they are of one seed. Each model has the learning rate that gave the
first seed its best score in that ability, so where several rates were tried that seed is the
luckiest of several runs. Two models are apart where the paired 95 % interval of their difference
over the seeds leaves out zero.
State beside a score: bytes of that model in float32 after one sequence of the mean trained length.
Costs are those of models of as many parameters with 256 tokens, as seqzoo bench measures them:
state of one sequence, memory of a training step.
Colours of the heat map: percentages from what guessing scores, where that is one number, or from 0,
to 100; other columns from the worst to the best model, costs on a logarithmic scale. A line joins
the models that none beats in both numbers."""


def write(results: Results, folder: Path) -> str:
    """Write every file of an exam into its directory, the numbers first; returns the tables and
    the sentences in Markdown."""
    scored = {
        "exam.json": json.dumps(results, indent=1) + "\n",
        "exam.csv": text.to_csv(SCORE_COLUMNS, [*results["scores"], *_cost_rows(results)]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*WRITTEN, *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg"))]:
        (folder / old).unlink(missing_ok=True)
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


def _cost_rows(results: Results) -> Iterator[dict[str, Any]]:
    """Costs as rows of exam.csv."""
    for model in results["models"]:
        for key, (title, unit, scale, _) in COSTS.items():
            if (value := cost(results, model, key)) is not None:
                known = {"model": model, "ability": title, "metric": key, "unit": unit}
                yield dict.fromkeys(SCORE_COLUMNS) | known | {"mean": value / scale, "n": 1}


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
            f"Costs at {results['exam']['speed_length']:,} tokens",
            Table(head, [[model, *_costs(results, model)] for model in results["models"]]),
        )
    head = ["model", "ability", "learning rate", "parameters", "dim", "state bytes", "steps"]
    chosen = [
        [
            *(row["model"], row["ability"], f"{row['rate']:g}"),
            *(number(row[key], 9) for key in ("parameters", "dim", "state_bytes", "steps")),
        ]
        for row in results["scores"]
        if not row["ability"].endswith(LONGER)
    ]
    yield "What was chosen", Table(head, chosen)


def _costs(results: Results, model: str) -> list[str]:
    values = [(cost(results, model, key), scale) for key, (_, _, scale, _) in COSTS.items()]
    return ["" if value is None else number(value / scale) for value, scale in values]


def efforts(abilities: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """How long a cell of each ability trains: `recall 4,000 steps, at most 120 s; ...`."""
    return "; ".join(_effort(ability, settings) for ability in abilities)


def about(results: Results) -> str:
    """Machine, command, date and effort, as text."""
    settings = results["exam"]
    size = f"{settings['parameters']:,} parameters" if settings["parameters"] else "own widths"
    rates = ", ".join(f"{rate:g}" for rate in settings["rates"])
    seeds = f"{settings['seeds']} seed" + "s" * (settings["seeds"] > 1)
    done = sum(cell["status"] == "finished" for cell in results["cells"])
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    return (
        f"{results['machine']}; {size}; learning rates {rates}; {seeds}\n"
        f"{efforts(results['abilities'], settings)}\n"
        f"{results['command']}\n{results['date']}, {results['seconds']:.0f} s of the last call, "
        f"{done} of {results['planned']} cells\n{versions}"
    )


def _effort(ability: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """`recall 4,000 steps, at most 120 s`."""
    factor, steps, seconds = ability["effort"], settings["steps"], settings["seconds"]
    if ability["timed"]:
        return f"{ability['name']} {factor * settings['language_seconds']:g} s"
    limits = [] if steps is None else [f"{factor * steps:,} steps"]
    limits += [] if seconds is None else [f"at most {factor * seconds:g} s"]
    return f"{ability['name']} {', '.join(limits)}"


def write_tensorboard(
    results: Results, drawn: dict[str, Figure], said: list[str], folder: Path
) -> None:
    """A TensorBoard run for each model: its scores and costs, and its curves, in which the step is
    the length or the number of pairs. One more run has the layout that shows the curves of all
    models in one chart, the figures and the sentences. What an earlier call wrote is removed."""
    from torch.utils.tensorboard import SummaryWriter

    if folder.exists():
        shutil.rmtree(folder)
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
                    for place, value, *_ in curve["points"]:
                        board.add_scalar(_tag(curve), value, place)
    charts: dict[str, dict[str, list[Any]]] = {}
    for curve in results["curves"]:
        chart = {curve["ability"]: ["Multiline", [f"{_tag(curve)}$"]]}
        charts.setdefault(f"accuracy in percent by {curve['axis']}", {}).update(chart)
    with figures.style(), SummaryWriter(str(folder)) as board:
        if charts:
            board.add_custom_scalars(charts)
        for name, figure in drawn.items():
            board.add_figure(f"exam/{name}", figure)
        board.add_text("exam", "\n".join(f"- {each}" for each in said))


def _tag(curve: Mapping[str, Any]) -> str:
    """TensorBoard's name of a curve."""
    return f"exam_by_{curve['axis']}/{curve['ability']}"
