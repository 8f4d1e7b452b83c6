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
    lines = [_ranking(results, column) for column in columns(results)]
    for column in columns(results):
        lines += _solved(results, column)
    for column in columns(results):
        if not column.endswith(", longer"):
            lines += _fronts(results, column)
    for more in (_parents, _failed, _ended_early, _not_comparable):
        lines += more(results)
    return lines


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
    first = [row for row in rows if row["mean"] == rows[0]["mean"]]
    best, others = first[0], rows[len(first) :]
    named = _listed([row["model"] for row in first])
    are = "is best" if len(first) == 1 else "are equally good"
    text = f"{column.capitalize()}: {named} {are} with {shown(best)}"
    close = [row["model"] for row in others if overlap(best, row)]
    if close:
        return f"{text}; the intervals of {_listed(close)} overlap with its own."
    if others:
        if best["low"] is not None and all(row["low"] is not None for row in others):
            text += ", apart from all others"
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


def _failed(results: Results) -> Iterator[str]:
    """What did not finish, and what of it is missing in the table."""
    failed = {(c["model"], c["ability"]): None for c in results["cells"] if c["status"] == "failed"}
    missing = [f"{a} of {m}" for m, a in failed if score(results, m, a) is None]
    partly = [f"{a} of {m}" for m, a in failed if score(results, m, a) is not None]
    if missing:
        yield f"Failed, and therefore not in the table: {', '.join(missing)}."
    if partly:
        yield f"A rate or a seed failed, and the table has the others: {', '.join(partly)}."


def _ended_early(results: Results) -> Iterator[str]:
    """Which models were ended by the clock before they had all their steps."""
    cut: dict[tuple[str, str], int] = {}
    asked = {}
    for cell in results["cells"]:
        if cell["status"] == "finished" and (cell["steps_asked"] or 0) > cell["steps"]:
            key = cell["ability"], cell["model"]
            cut[key] = min(cell["steps"], cut.get(key, cell["steps"]))
            asked[cell["ability"]] = cell["steps_asked"]
    for ability, steps in asked.items():
        named = [f"{model} ({n:,})" for (each, model), n in cut.items() if each == ability]
        yield (
            f"The clock ended {ability} before all of its {steps:,} steps for {_listed(named)}: "
            "with more seconds they may be better."
        )


def _not_comparable(results: Results) -> Iterator[str]:
    """Cells that cannot be compared, as their data or the versions they ran with differ."""
    finished = [cell for cell in results["cells"] if cell["status"] == "finished"]
    for ability in dict.fromkeys(cell["ability"] for cell in finished):
        if len({cell["data_sha256"] for cell in finished if cell["ability"] == ability}) > 1:
            yield f"The data of {ability} changed between cells: do not compare its scores."
    used = sorted({each for cell in finished for each in cell["versions"].items()})
    names = [name for name, _ in used]
    if mixed := [f"{name} {each}" for name, each in used if names.count(name) > 1]:
        yield f"Cells ran with different versions: {', '.join(mixed)}."


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
