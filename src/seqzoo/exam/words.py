"""What the numbers of an exam mean, in sentences: who is best, who solves what, and which models
are beaten by none at their cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seqzoo.exam.plan import LONGER
from seqzoo.exam.results import (
    COSTS,
    Results,
    Row,
    above_chance,
    chance,
    columns,
    contenders,
    difference,
    front,
    higher_is_better,
    of_cells,
    quality,
    score,
    state_or_cost,
)
from seqzoo.report.statistics import Difference
from seqzoo.report.text import number

SOLVED, NEARLY = 99.0, 90.0  # percent
COARSE = 0.1  # relative
ENDS = ("mean", "low", "high")
AGAINST = ("state_bytes", "train_tokens_per_second", "decode_milliseconds")


def sentences(results: Results) -> list[str]:
    """Everything that is said below the figures, a sentence or two each."""
    lines = [*_stopped(results), *_one_seed(results)]
    lines += [_ranking(results, column) for column in columns(results)]
    lines += _guessing(results)
    for column in columns(results):
        lines += _solved(results, column)
    for column in columns(results):
        if not column.endswith(LONGER):
            lines += _fronts(results, column)
    for more in (_parents, _unequal, _failed, _ended_early, _not_comparable):
        lines += more(results)
    return lines


def shown(row: Row) -> str:
    """A score with its interval: `97.3 % (96.8 to 97.8, n 3)`; of one seed `97.3 %`."""
    unit = f" {row['unit']}" if row["unit"] else ""
    mean, low, high = (None if row[key] is None else digits(row[key], row["unit"]) for key in ENDS)
    return f"{mean}{unit}" + ("" if low is None else f" ({low} to {high}, n {row['n']})")


def digits(value: float, unit: str) -> str:
    """A score; what is not in percent with four figures below ten. 99.99 % is not 100.0 %."""
    if unit == "%":
        return f"{value:.2f}" if 99.95 <= value < 100 else f"{value:.1f}"
    return number(value, 4) if value < 10 else f"{value:.1f}"


def ranked(results: Results, column: str) -> list[Row]:
    """The scores of a column, best first."""
    found = [row for model in results["models"] if (row := score(results, model, column))]
    return sorted(found, key=lambda row: row["mean"], reverse=higher_is_better(results, column))


def title(column: str) -> str:
    """A column at the beginning of a sentence: `Copying beyond the trained lengths`."""
    name = column.removesuffix(LONGER)
    return name.capitalize() + " beyond the trained lengths" * column.endswith(LONGER)


def _ranking(results: Results, column: str) -> str:
    """Who is best, and whose difference from it may be chance."""
    rows = ranked(results, column)
    first = [row for row in rows if row["mean"] == rows[0]["mean"]]
    best, others = first[0], rows[len(first) :]
    named = _listed([row["model"] for row in first])
    are = "is best" if len(first) == 1 else "are equally good"
    guessed = "" if above_chance(results, best) else "no model is better than guessing; "
    text = f"{title(column)}: {guessed}{named} {are} with {shown(best)}"
    if guessed:
        return f"{text}."
    found = {row["model"]: difference(row, best) for row in others}
    close = [
        model for model, each in found.items() if each and not _better_by(results, each, column)
    ]
    if close:
        return f"{text}; over the seeds, the difference from {_listed(close)} may be chance."
    if others:
        if all(found.values()):
            text += ", apart from all others"
        text += f"; next is {others[0]['model']} with {shown(others[0])}"
    return f"{text}."


def _stopped(results: Results) -> Iterator[str]:
    """That an exam was ended before all of its cells had run."""
    done = len(results["cells"])
    if results["stopped"] and done < results["planned"]:
        yield (
            f"Stopped after {done} of {results['planned']} cells: some models may have had fewer "
            "learning rates or seeds than others."
        )


def _one_seed(results: Results) -> Iterator[str]:
    """That nothing is known of the luck of a seed."""
    if all(row["n"] == 1 for row in results["scores"]):
        yield "Every score is of one seed, so small differences may be chance."


def _guessing(results: Results) -> Iterator[str]:
    """What guessing scores where that is known."""
    names = [column for column in columns(results) if not column.endswith(LONGER)]
    known = [(name, value) for name in names if (value := chance(results, name)) is not None]
    if known:
        yield f"Guessing scores {_listed([f'{value:g} % in {name}' for name, value in known])}."


def _solved(results: Results, column: str) -> Iterator[str]:
    """Which models have all right, and with how large a state."""
    rows = ranked(results, column)
    if rows[0]["unit"] != "%":
        return
    solved = [_with_state(results, row, column) for row in rows if row["mean"] >= SOLVED]
    nearly = [_with_state(results, row, column) for row in rows if NEARLY <= row["mean"] < SOLVED]
    text = f"{title(column)}: solved ({SOLVED:.0f} % or more) by {_listed(solved) or 'none'}"
    if nearly:
        text += f"; nearly ({NEARLY:.0f} %) by {_listed(nearly)}"
    yield f"{text}."


def _with_state(results: Results, row: Row, column: str) -> str:
    """`gla 99.2 % (98.9 to 99.5, n 3), state 2.00 KiB`."""
    state = _cost(results, row["model"], column, "state_bytes")
    return f"{row['model']} {shown(row)}" + (f", state {state}" if state else "")


def _fronts(results: Results, column: str) -> Iterator[str]:
    """Of the models that do better than guessing, those that none beats in a column and a cost."""
    scores = {row["model"]: shown(row) for row in ranked(results, column)}
    for against in AGAINST:
        points = contenders(results, column, quality(results, column, against))
        if len(points) > 1:
            best = [f"{m} {scores[m]}, {_cost(results, m, column, against)}" for m in front(points)]
            begin = f"On the Pareto front of {column} against {COSTS[against][0]}"
            yield f"{begin}, the cheapest first: {'; '.join(best)}."


def _parents(results: Results) -> Iterator[str]:
    """Whether a hybrid is better than each family in it."""
    for model, families in results["models"].items():
        parents = list(dict.fromkeys(families))
        if len(parents) < 2 or not set(parents) <= results["models"].keys():
            continue
        surely: list[str] = []
        perhaps: list[str] = []
        for column in columns(results):
            better = _better(results, model, parents, column)
            if better is not None:
                (surely if better else perhaps).append(column)
        text = f"{model} is better than each of its parents, {_listed(parents)}, "
        text += f"in {_listed(surely)}" if surely else "in nothing beyond chance"
        if perhaps:
            text += f"; its mean is better in {_listed(perhaps)}, where seeds are too few or differ"
        yield f"{text}."


def _better(results: Results, model: str, parents: Sequence[str], column: str) -> bool | None:
    """Whether a model is better than each of others by more than chance; None where its mean is
    not better, or something is missing."""
    own = score(results, model, column)
    theirs = [score(results, parent, column) for parent in parents]
    if own is None or None in theirs:
        return None
    sign = 1 if higher_is_better(results, column) else -1
    found = [(row, difference(row, own)) for row in theirs if row is not None]
    if any(sign * own["mean"] <= sign * row["mean"] for row, _ in found):
        return None
    if not above_chance(results, own):
        return None
    return all(each and _better_by(results, each, column) for _, each in found)


def _better_by(results: Results, gain: Difference, column: str) -> bool:
    """Whether a difference over the seeds is for the better by more than chance."""
    return gain.apart and (gain.mean > 0) == higher_is_better(results, column)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _unequal(results: Results) -> Iterator[str]:
    """Which models are larger or smaller than was asked, as widths come in steps."""
    asked = results["exam"]["parameters"]
    found: dict[str, list[int]] = {}
    for row in results["scores"]:
        if asked and abs(row["parameters"] / asked - 1) > COARSE:
            found.setdefault(row["model"], []).append(row["parameters"])
    if found:
        sizes = (f"{m} ({_range(n)})" for m, n in found.items())
        yield f"More than {COARSE:.0%} off the {asked:,} parameters asked: {', '.join(sizes)}."


def _failed(results: Results) -> Iterator[str]:
    """What did not finish, and what of it is missing in the table."""
    failed = {(c["model"], c["ability"]): None for c in results["cells"] if c["status"] == "failed"}
    missing = [f"{a} of {m}" for m, a in failed if score(results, m, a) is None]
    partly = [f"{a} of {m}" for m, a in failed if score(results, m, a) is not None]
    costs = [(row["model"], ", ".join(row["notes"])) for row in results["costs"] if row["notes"]]
    if missing:
        yield f"Failed, and therefore not in the table: {', '.join(missing)}."
    if partly:
        yield f"A rate or a seed failed, and the table has the others: {', '.join(partly)}."
    if costs:
        listed = "; ".join(f"{model} ({notes})" for model, notes in costs)
        yield f"Of speed and memory there is not all of {listed}."
    if results["costs_failed"]:
        yield f"Speed and memory were not measured: {results['costs_failed']}."


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
    """Cells that cannot be compared, as their data, device or threads or the versions they ran with
    differ."""
    finished = [cell for cell in results["cells"] if cell["status"] == "finished"]
    for ability, found in of_cells(results, "data_sha256").items():
        if len(found) > 1:
            yield f"The data of {ability} changed between cells: do not compare its scores."
    for key in ("device", "threads"):
        for ability, found in of_cells(results, key).items():
            if len(found) > 1:
                listed = ", ".join(sorted(map(str, found)))
                yield f"Cells of {ability} ran with different {key}: {listed}."
    used = sorted({each for cell in finished for each in cell["versions"].items()})
    names = [name for name, _ in used]
    if mixed := [f"{name} {each}" for name, each in used if names.count(name) > 1]:
        yield f"Cells ran with different versions: {', '.join(mixed)}."


def _cost(results: Results, model: str, column: str, key: str) -> str:
    """A cost of a model in a column with its unit; nothing where it is not known."""
    value = state_or_cost(results, model, column, key)
    _, unit, scale, _ = COSTS[key]
    return "" if value is None else f"{number(value / scale)} {unit}"


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence; those that hold commas are set apart by semicolons."""
    comma = "; " if any("," in name for name in names) else ", "
    return " and ".join([comma.join(names[:-1]), names[-1]] if len(names) > 1 else names)
