"""From the cells of an exam to a table: a mean with its interval for each model and ability, what
each model costs, and who is beaten by nobody."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seqzoo.bench.results import measured
from seqzoo.exam.cells import Cells
from seqzoo.exam.plan import unit
from seqzoo.report.statistics import t_quantile
from seqzoo.runs.directory import RunDirectory

Results = Mapping[str, Any]  # the content of exam.json
Row = Mapping[str, Any]
SCORE_COLUMNS = "model ability metric unit mean low high n rate parameters dim steps".split()


def scores(cells: Cells) -> Iterator[dict[str, Any]]:
    """A row of SCORE_COLUMNS for each model and column, and `values`, of each seed.

    `low` and `high` are the ends of the 95 % interval of the mean over seeds by Student's t
    distribution; None of a single seed.
    """
    for ability in cells.plan.abilities:
        for model in cells.plan.models:
            answers = cells.chosen(model, ability)
            for column, metric in ability.columns.items():
                found = [score for each in answers if (score := each.score(metric)) is not None]
                if found:
                    best = answers[0]
                    yield {
                        "model": model,
                        "ability": column,
                        "metric": metric,
                        "unit": unit(metric)[0],
                        **interval(found, percent=unit(metric)[0] == "%"),
                        "rate": best.cell.rate,
                        "parameters": best.summary.get("parameters"),
                        "dim": RunDirectory(best.folder).config["model"]["dim"],
                        "steps": best.summary.get("steps"),
                        "values": found,
                    }


def interval(values: Sequence[float], percent: bool = False) -> dict[str, Any]:
    """Mean, number and the 95 % interval of the mean; of shares in percent cut to 0 and 100."""
    n, mean = len(values), statistics.fmean(values)
    found: dict[str, Any] = {"mean": mean, "low": None, "high": None, "n": n}
    if n > 1:
        half = t_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
        share = percent and min(values) >= 0  # a scaled accuracy may be negative
        lowest, highest = (0, 100) if share else (-math.inf, math.inf)
        found |= {"low": max(lowest, mean - half), "high": min(highest, mean + half)}
    return found


def curves(cells: Cells) -> Iterator[dict[str, Any]]:
    """For each model and ability that has one: the mean score by length, or by number of pairs."""
    for ability in cells.plan.abilities:
        for model in cells.plan.models:
            summaries = [answer.summary for answer in cells.chosen(model, ability)]
            if not summaries or ability.curve is None:
                continue
            points = sorted(
                (int(key.rpartition("/")[2]), statistics.fmean(values))
                for key in summaries[0]
                if key.partition("/")[2].startswith(f"{ability.curve}/")
                and (values := [each[key] for each in summaries if key in each])
            )
            if points:
                axis = ability.curve.rpartition("_by_")[2]
                yield {"model": model, "ability": ability.name, "axis": axis, "points": points}


def costs(bench: Mapping[str, Any], length: int) -> Iterator[dict[str, Any]]:
    """For each model of a bench: training in tokens a second, decoding in milliseconds a token,
    bytes of the state after `length` tokens, and peak memory of training over the process's
    base."""
    for model in bench["models"]:
        row: dict[str, Any] = {"model": model}
        for mode, column in (("train", "tokens_per_second"), ("decode", "milliseconds")):
            at = [row for row in measured(bench["points"], model, mode) if row["length"] == length]
            row[f"{mode}_{column}"] = at[0][column] if at else None
            if at and mode == "decode":
                row["state_bytes"] = at[0]["state_bytes"]
            if at and mode == "train":
                row["memory_bytes"] = at[0]["over_base_bytes"]
        yield row


COSTS = {  # column: title, unit, scale, whether higher is better
    "train_tokens_per_second": ("training", "tokens/s", 1, True),
    "decode_milliseconds": ("decoding", "ms/token", 1, False),
    "state_bytes": ("state", "KiB", 2**10, False),
    "memory_bytes": ("memory", "MiB", 2**20, False),
}


def score(results: Results, model: str, column: str) -> Row | None:
    """The row of a model and a column."""
    for row in results["scores"]:
        if (row["model"], row["ability"]) == (model, column):
            return dict(row)
    return None


def columns(results: Results) -> list[str]:
    """The columns of scores, in order."""
    return list(dict.fromkeys(row["ability"] for row in results["scores"]))


def cost(results: Results, model: str, column: str) -> float | None:
    """One of COSTS of a model."""
    for row in results["costs"]:
        if row["model"] == model and row.get(column) is not None:
            return float(row[column])
    return None


def higher_is_better(results: Results, column: str) -> bool:
    return next(unit(row["metric"])[1] for row in results["scores"] if row["ability"] == column)


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The Pareto front: the models for which none is as good in both numbers and better in one.

    Args:
        points: of each model (badness, cost): of both the lower is the better.

    Returns:
        Their names, cost ascending.
    """

    def beaten(name: str) -> bool:
        ours = points[name]
        return any(
            theirs != ours and all(a <= b for a, b in zip(theirs, ours, strict=True))
            for theirs in points.values()
        )

    return sorted((name for name in points if not beaten(name)), key=lambda n: points[n][::-1])


def quality(results: Results, column: str, cost_column: str) -> dict[str, tuple[float, float]]:
    """Of each model with both: (badness in a column, cost), as `front` takes them."""
    sign = -1 if higher_is_better(results, column) else 1
    dear = -1 if COSTS[cost_column][3] else 1
    found = {}
    for model in results["models"]:
        row, value = score(results, model, column), cost(results, model, cost_column)
        if row is not None and value is not None:
            found[model] = (sign * row["mean"], dear * value)
    return found
