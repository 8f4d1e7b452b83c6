"""The figures of an exam: a heat map of all scores, scores against the bytes of the state, and
scores against length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seqzoo.exam.results import (
    COSTS,
    Results,
    chance,
    columns,
    contenders,
    cost,
    front,
    higher_is_better,
    quality,
    score,
)
from seqzoo.report import figures as look
from seqzoo.report import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FIGURES = ("exam", "state", "speed", "length")  # names of their files


def all_figures(results: Results) -> dict[str, Figure]:
    """Every figure that there are numbers for, by the name of its file."""
    found = {"exam": heat_map(results)}
    for name, against in (("state", "state_bytes"), ("speed", "train_tokens_per_second")):
        if any(quality(results, column, against) for column in columns(results)):
            found[name] = against_cost(results, against)
    if results["curves"]:
        found["length"] = against_length(results)
    return found


@look.style()
def heat_map(results: Results) -> Figure:
    """Models by abilities and costs; the text is the value, the colour of a percentage its place
    between guessing and all right, and of other columns between the worst and the best."""
    models, names = list(results["models"]), columns(results)
    costs = COSTS if results["costs"] else {}
    heads = [*names, *(f"{title}, {unit}" for title, unit, *_ in costs.values())]
    shades, texts = [], []
    for model in models:
        values = [_value(results, model, name) for name in names]
        pairs = zip(values, names, strict=True)
        cells = ["" if value is None else _cell(value, _unit(results, n)) for value, n in pairs]
        for column, (_, _, scale, _) in costs.items():
            value = cost(results, model, column)
            values.append(value)
            cells.append("" if value is None else text.number(value / scale))
        shades.append(values)
        texts.append(cells)
    ups = [higher_is_better(results, name) for name in names]
    ups += [up for *_, up in costs.values()]
    logs = [False] * len(names) + [True] * len(costs)
    ranks = [_shade([row[i] for row in shades], ups[i], logs[i]) for i in range(len(heads))]
    for i, name in enumerate(names):
        if _unit(results, name) == "%":
            least = chance(results, name) or 0
            percent = (row[i] for row in shades)
            ranks[i] = [
                math.nan if value is None else max(0, (value - least) / (100 - least))
                for value in percent
            ]
    figure = look.new_figure(1.6 + 0.95 * len(heads), 1.1 + 0.32 * len(models))
    axes = figure.subplots()
    matrix = [[ranks[i][j] for i in range(len(heads))] for j in range(len(models))]
    look.heat_map(axes, matrix, models, heads, cmap="RdYlGn", vmin=-0.15, vmax=1.15, aspect="auto")
    axes.set_xticks(range(len(heads)), heads, rotation=30, ha="left")
    for j, row in enumerate(texts):
        for i, cell in enumerate(row):
            axes.text(i, j, cell, ha="center", va="center", fontsize=8)
    return figure


def _value(results: Results, model: str, column: str) -> float | None:
    row = score(results, model, column)
    return None if row is None else float(row["mean"])


def _cell(value: float, unit: str) -> str:
    if value >= 10:
        return f"{value:.0f}"
    return f"{value:.1f}" if unit == "%" else f"{value:.3f}"


def _shade(values: list[float | None], higher_is_better: bool, log: bool) -> list[float]:
    """Each value's place between the worst, 0, and the best, 1; NaN where there is none."""
    known = [math.log(v) if log and v > 0 else v for v in values if v is not None]
    low, high = min(known, default=0), max(known, default=0)
    places = []
    for v in values:
        if v is None:
            places.append(math.nan)
            continue
        value = math.log(v) if log and v > 0 else v
        place = (value - low) / (high - low) if high > low else 1.0
        places.append(place if higher_is_better or high == low else 1 - place)
    return places


@look.style()
def against_cost(results: Results, against: str) -> Figure:
    """A panel for each ability: score against a cost, with the Pareto front of the models that do
    better than guessing as a line, and the names on it."""
    names = [name for name in columns(results) if quality(results, name, against)]
    figure, panels = _panels(names)
    title, unit, scale, _ = COSTS[against]
    colours = look.colours(list(results["models"]))
    named = []
    for axes, name in zip(panels, names, strict=True):
        sign = -1 if higher_is_better(results, name) else 1
        points = quality(results, name, against)
        for model in points:
            row = score(results, model, name)
            assert row is not None
            x = abs(points[model][1]) / scale
            ends = (
                [[row["mean"] - row["low"]], [row["high"] - row["mean"]]] if row["n"] > 1 else None
            )
            axes.errorbar(
                [x], [row["mean"]], ends, fmt="o", color=colours[model], label=model, elinewidth=0.8
            )
        on_front = front(contenders(results, name, points))
        line = [(abs(points[m][1]) / scale, sign * points[m][0]) for m in on_front]
        axes.plot([x for x, _ in line], [y for _, y in line], color="0.6", lw=0.9, zorder=0)
        named.append((axes, line, on_front))
        axes.set(xscale="log", title=name, xlabel=f"{title}, {unit}", ylabel=_unit(results, name))
        if _unit(results, name) == "%":
            axes.set_ylim(0, 103)
        axes.xaxis.set_major_formatter(lambda value, _: text.number(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    look.legend_below(figure, 6)
    for each in named:  # when all has its place
        look.name_points(*each)
    return figure


def _panels(names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each name, at most three beside each other."""
    across = min(3, len(names))
    figure = look.new_figure(3.9 * across, 3.1 * -(-len(names) // across) + 0.5)
    return figure, look.grid(figure, len(names), across)


def _unit(results: Results, column: str) -> str:
    return str(next(row["unit"] for row in results["scores"] if row["ability"] == column))


@look.style()
def against_length(results: Results) -> Figure:
    """A panel for each ability: accuracy against the length, or the number of pairs, with the 95 %
    intervals of several seeds; up to the trained size the ground is grey."""
    names = list(dict.fromkeys(curve["ability"] for curve in results["curves"]))
    figure, panels = _panels(names)
    colours = look.colours(list(results["models"]))
    for axes, name in zip(panels, names, strict=True):
        own = [curve for curve in results["curves"] if curve["ability"] == name]
        for curve in own:
            _draw(axes, curve["points"], colours[curve["model"]], curve["model"])
        lengths = sorted({length for curve in own for length, *_ in curve["points"]})
        axes.set(xscale="log", title=name, xlabel=own[0]["axis"], ylabel="%", ylim=(0, 103))
        axes.set_xticks(lengths, [text.length(each) for each in lengths], minor=False)
        axes.set_xticks([], minor=True)
        if own[0]["trained"] is not None:
            left, right = axes.get_xlim()
            axes.axvspan(left, own[0]["trained"], color="0.92", zorder=0)
            axes.set_xlim(left, right)
    look.legend_below(figure, 6)
    return figure


def _draw(axes: Axes, points: Sequence[Sequence[Any]], colour: look.Colour, name: str) -> None:
    sizes, means, lows, highs = zip(*points, strict=True)
    axes.plot(sizes, means, marker="o", color=colour, label=name)
    if None not in lows:
        axes.fill_between(sizes, lows, highs, color=colour, alpha=0.15, lw=0)
