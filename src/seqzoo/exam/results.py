"""From the cells of an exam to a table: a mean with its interval for each model and ability, what
each model costs, and who is beaten by nobody."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seqzoo.bench.results import measured
from seqzoo.exam.cells import Cells
from seqzoo.exam.plan import LONGER, unit
from seqzoo.report.statistics import Difference, half_width, paired
from seqzoo.runs.directory import RunDirectory

Results = Mapping[str, Any]  # the content of exam.json
ABOVE_CHANCE = 2.0  # percentage points; less is no better than guessing
Row = Mapping[str, Any]
SCORE_COLUMNS = (
    "model ability metric unit mean low high n rate parameters dim state_bytes steps".split()
)


def scores(cells: Cells) -> Iterator[dict[str, Any]]:
    """A row of SCORE_COLUMNS for each model and column, and `values`, the score of each seed.

    `low` and `high` are the ends of the 95 % interval of the mean over seeds by Student's t
    distribution; None of a single seed. `state_bytes` are those of this model in float32, after a
    sequence of the mean length that it was trained on.
    """
    for ability in cells.plan.abilities:
        for model in cells.plan.models:
            answers = cells.chosen(model, ability)
            for column, metric in ability.columns.items():
                found = {
                    each.cell.seed: score
                    for each in answers
                    if (score := each.score(metric)) is not None
                }
                if found:
                    best = answers[0]
                    yield {
                        "model": model,
                        "ability": column,
                        "metric": metric,
                        "unit": unit(metric)[0],
                        **interval(list(found.values()), percent=unit(metric)[0] == "%"),
                        "rate": best.cell.rate,
                        "parameters": best.summary.get("parameters"),
                        "dim": RunDirectory(best.folder).config["model"]["dim"],
                        "state_bytes": best.summary.get("state_bytes"),
                        "steps": best.summary.get("steps"),
                        "values": found,
                    }


def interval(values: Sequence[float], percent: bool = False) -> dict[str, Any]:
    """Mean, number and the 95 % interval of the mean; of shares in percent cut to 0 and 100."""
    n, mean = len(values), statistics.fmean(values)
    found: dict[str, Any] = {"mean": mean, "low": None, "high": None, "n": n}
    if n > 1:
        half = half_width(values)
        share = percent and min(values) >= 0  # a scaled accuracy may be negative
        lowest, highest = (0, 100) if share else (-math.inf, math.inf)
        found |= {"low": max(lowest, mean - half), "high": min(highest, mean + half)}
    return found


def curves(cells: Cells) -> Iterator[dict[str, Any]]:
    """For each model and ability that has one: the score by length, or by number of pairs.

    `points` are (size, mean, low, high), as in `scores`; `trained` is the largest size that was
    trained, which `val` measures.
    """
    for ability in cells.plan.abilities:
        for model in cells.plan.models:
            summaries = [answer.summary for answer in cells.chosen(model, ability)]
            if not summaries or ability.curve is None:
                continue
            points, trained = [], []
            for key in summaries[0]:
                split, _, name = key.partition("/")
                if not name.startswith(f"{ability.curve}/"):
                    continue
                size = int(name.rpartition("/")[2])
                found = interval([each[key] for each in summaries if key in each], percent=True)
                points.append((size, found["mean"], found["low"], found["high"]))
                trained += [size] if split == "val" else []
            if points:
                yield {
                    "model": model,
                    "ability": ability.name,
                    "axis": ability.curve.rpartition("_by_")[2],
                    "trained": max(trained, default=None),
                    "points": sorted(points),
                }


def costs(bench: Mapping[str, Any], length: int) -> Iterator[dict[str, Any]]:
    """For each model of a bench: training in tokens a second, decoding in milliseconds a token,
    bytes of the state after `length` tokens, and peak memory of training over the process's base;
    `notes` say why something was not measured."""
    for model in bench["models"]:
        row: dict[str, Any] = {"model": model, "notes": _notes(bench, model)}
        for mode, column in (("train", "tokens_per_second"), ("decode", "milliseconds")):
            at = [row for row in measured(bench["points"], model, mode) if row["length"] == length]
            row[f"{mode}_{column}"] = at[0][column] if at else None
            if at and mode == "decode":
                row["state_bytes"] = at[0]["state_bytes"]
            if at and mode == "train":
                row["memory_bytes"] = at[0]["over_base_bytes"]
        yield row


def _notes(bench: Mapping[str, Any], model: str) -> list[str]:
    """Why points of a model have no figure: `train: out of memory`."""
    points = (point for point in bench["points"] if point["model"] == model)
    return [f"{each['mode']}: {each['status']}" for each in points if each["status"] != "ok"]


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


def of_cells(results: Results, key: str) -> dict[str, set[Any]]:
    """Of each ability the different values that its finished cells have at a key, such as
    `data_sha256`, the digest of the data."""
    found: dict[str, set[Any]] = {}
    for cell in results["cells"]:
        if cell["status"] == "finished":
            found.setdefault(cell["ability"], set()).add(cell[key])
    return found


def columns(results: Results) -> list[str]:
    """The columns of scores, in order."""
    return list(dict.fromkeys(row["ability"] for row in results["scores"]))


def chance(results: Results, column: str) -> float | None:
    """What guessing scores in a column, in percent; None where it is not one number."""
    name = column.removesuffix(LONGER)
    return next((each["chance"] for each in results["abilities"] if each["name"] == name), None)


def above_chance(results: Results, row: Row) -> bool:
    """Whether a score is more than guessing reaches; true where that is not one number."""
    guessed = chance(results, row["ability"])
    return guessed is None or bool(row["mean"] > guessed + ABOVE_CHANCE)


def cost(results: Results, model: str, column: str) -> float | None:
    """One of COSTS of a model."""
    for row in results["costs"]:
        if row["model"] == model and row.get(column) is not None:
            return float(row[column])
    return None


def state_or_cost(results: Results, model: str, column: str, key: str) -> float | None:
    """One of COSTS of a model, for a column of scores: the bytes of a state are those of the model
    that has the score, which is built for that ability's vocabulary and read that long."""
    if key != "state_bytes":
        return cost(results, model, key)
    row = score(results, model, column)
    return None if row is None or row.get(key) is None else float(row[key])


def difference(first: Row, second: Row) -> Difference | None:
    """How much larger the second score is, over the seeds of both; None where there are fewer than
    two such seeds."""
    ours, theirs = ({int(s): v for s, v in row["values"].items()} for row in (first, second))
    return paired(ours, theirs)


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
        row = score(results, model, column)
        value = state_or_cost(results, model, column, cost_column)
        if row is not None and value is not None:
            found[model] = (sign * row["mean"], dear * value)
    return found


def contenders(
    results: Results, column: str, points: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Those of the points of a column whose models do better than guessing."""
    rows = {model: score(results, model, column) for model in points}
    good = [model for model, row in rows.items() if row and above_chance(results, row)]
    return {model: points[model] for model in good}
