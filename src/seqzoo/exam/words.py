"""What the numbers of an exam mean, in sentences: who is best, who solves what, and which models
are beaten by none at their cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seqzoo.exam.results import (
    COSTS,
    Results,
    Row,
    columns,
    cost,
    front,
    higher_is_better,
    quality,
    score,
)
from seqzoo.report.text import number

SOLVED, NEARLY = 99.0, 90.0  # percent
ENDS = ("mean", "low", "high")
AGAINST = ("state_bytes", "train_tokens_per_second", "decode_milliseconds")


def sentences(results: Results) -> list[str]:
    """Everything that is said below the figures, a sentence or two each."""
    said = [_ranking(results, column) for column in columns(results)]
    for column in columns(results):
        said += _solved(results, column)
    for column in columns(results):
        if not column.endswith(", longer"):
            said += _fronts(results, column)
    said += _parents(results)
    failed = [cell for cell in results["cells"] if cell["status"] == "failed"]
    if failed:
        named = ", ".join(f"{cell['ability']} of {cell['model']}" for cell in failed)
        said.append(f"Failed, and therefore not in the table: {named}.")
    return said


def shown(row: Row) -> str:
    """A score with its interval: `97.3 % (96.8 to 97.8, n 3)`."""
    unit = f" {row['unit']}" if row["unit"] else ""
    mean, low, high = (None if row[key] is None else digits(row[key]) for key in ENDS)
    seeds = "one seed" if low is None else f"{low} to {high}, n {row['n']}"
    return f"{mean}{unit} ({seeds})"


def digits(value: float) -> str:
    """A score, with four figures below ten."""
    return number(value, 4) if value < 10 else f"{value:.1f}"


def ranked(results: Results, column: str) -> list[Row]:
    """The scores of a column, best first."""
    found = [row for model in results["models"] if (row := score(results, model, column))]
    return sorted(found, key=lambda row: row["mean"], reverse=higher_is_better(results, column))


def _ranking(results: Results, column: str) -> str:
    rows = ranked(results, column)
    best, *others = rows
    text = f"{column.capitalize()}: {best['model']} is best with {shown(best)}"
    if not others:
        return f"{text}."
    close = [row["model"] for row in others if overlap(best, row)]
    if close:
        text += f"; the intervals of {_listed(close)} overlap with its own"
    elif best["low"] is not None:
        text += f", apart from all others; next is {others[0]['model']} with {shown(others[0])}"
    else:
        text += f"; next is {others[0]['model']} with {shown(others[0])}"
    return f"{text}."


def overlap(first: Row, second: Row) -> bool:
    """Whether two intervals have a value in common; those of one seed have none."""
    if first["low"] is None or second["low"] is None:
        return False
    return bool(first["low"] <= second["high"] and second["low"] <= first["high"])


def _solved(results: Results, column: str) -> Iterator[str]:
    """Which models have all right, and with how small a state."""
    rows = ranked(results, column)
    if rows[0]["unit"] != "%":
        return
    solved = [row["model"] for row in rows if row["mean"] >= SOLVED]
    nearly = [row["model"] for row in rows if NEARLY <= row["mean"] < SOLVED]
    text = f"{column.capitalize()} is solved ({SOLVED:.0f} % or more) by "
    text += _listed(solved) if solved else "none"
    if nearly:
        text += f", nearly ({NEARLY:.0f} %) by {_listed(nearly)}"
    sizes = {m: size for m in solved if (size := cost(results, m, "state_bytes")) is not None}
    if len(sizes) > 1:
        least = min(sizes, key=lambda name: sizes[name])
        text += f"; of those {least} has the smallest state, {_cost(results, least, 'state_bytes')}"
    yield f"{text}."


def _fronts(results: Results, column: str) -> Iterator[str]:
    """The models that none beats in a column and a cost."""
    means = {row["model"]: digits(row["mean"]) for row in ranked(results, column)}
    for against in AGAINST:
        points = quality(results, column, against)
        if len(points) > 1:
            best = [f"{m} ({means[m]}, {_cost(results, m, against)})" for m in front(points)]
            begin = f"On the Pareto front of {column} against {COSTS[against][0]}"
            yield f"{begin}, the cheapest first: {', '.join(best)}."


def _parents(results: Results) -> Iterator[str]:
    """Whether a hybrid is better than each family in it."""
    for model, families in results["models"].items():
        parents = dict.fromkeys(families)
        inside = [name for name in parents if name in results["models"]]
        if len(parents) < 2 or len(inside) < len(parents):
            continue
        won = [c for c in columns(results) if _beats(results, model, inside, c)]
        better = f"in {_listed(won)}" if won else "in nothing"
        yield f"The hybrid {model} is better than each of {_listed(inside)} {better}."


def _beats(results: Results, model: str, parents: Sequence[str], column: str) -> bool:
    own = score(results, model, column)
    theirs = [score(results, parent, column) for parent in parents]
    if own is None or None in theirs:
        return False
    sign = 1 if higher_is_better(results, column) else -1
    return all(sign * own["mean"] > sign * row["mean"] for row in theirs if row is not None)


def _cost(results: Results, model: str, column: str) -> str:
    _, unit, scale, _ = COSTS[column]
    return f"{number((cost(results, model, column) or 0) / scale)} {unit}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
