"""Two exams side by side: the score of each model in each ability, whether it changed, and what
the models cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqzoo.analysis.compare.pair import Result, differences, read_two
from seqzoo.errors import UserError
from seqzoo.exam.plan import LONGER
from seqzoo.exam.results import COSTS, cost, difference, of_cells
from seqzoo.exam.words import shown
from seqzoo.report.statistics import Difference
from seqzoo.report.text import markdown, number

EXAM = "exam.json"
CONDITIONS = ("machine", "versions")  # of exam.json, beside its settings
SETTINGS = (
    *("parameters", "rates", "seeds", "steps", "seconds", "language_seconds"),
    *("device", "speed_length"),
)
Scores = Mapping[tuple[str, str, str], Mapping[str, Any]]  # by model, ability and metric


def compare_exams(folders: Sequence[Path]) -> str:
    """The scores and costs that two exams share, side by side, and what only one of them has, in
    Markdown. Scores on different data are not set side by side.

    Raises:
        UserError: not two exams, or no score in common that can be compared.
    """
    first, second = read_two(folders, EXAM)
    ours, theirs = map(_scores, (first, second))
    unlike = _unlike(first, second)
    shared = [key for key in ours if key in theirs]
    alike = [key for key in shared if key[1].removesuffix(LONGER) not in unlike]
    if not alike:
        why = f": the data of {', '.join(unlike)} differ" if shared else ""
        raise UserError(
            f"{folders[0]} and {folders[1]} have no score in common that can be compared{why}"
        )
    rows = []
    for key in alike:
        row, other = ours[key], theirs[key]
        change = difference(row, other)
        moved = f"{'+' * (other['mean'] >= row['mean'])}{number(other['mean'] - row['mean'])}"
        rows.append([*key[:2], shown(row), shown(other), moved, _chance(row, other, change)])
    text = _differences(first, second)
    text += "".join(f"Not compared: {each}, whose data differ.\n\n" for each in unlike)
    for folder, own, others in ((folders[0], ours, theirs), (folders[1], theirs, ours)):
        if only := [f"{ability} of {model}" for model, ability, _ in own.keys() - others.keys()]:
            text += f"Only in {folder}: {', '.join(sorted(only))}.\n\n"
    text += markdown(["model", "ability", "first", "second", "change", "seeds"], rows)
    if costs := list(_costs(first, second)):
        head = ["model", "cost", "first", "second", "second / first"]
        text += "\n" + markdown(head, costs)
    return text


def _chance(row: Mapping[str, Any], other: Mapping[str, Any], change: Difference | None) -> str:
    """Whether a change may be chance."""
    if row["values"] == other["values"]:
        return "equal"
    if change is None:
        return "fewer than two seeds in both"
    return "apart" if change.apart else "may be chance"


def _scores(exam: Result) -> Scores:
    return {(row["model"], row["ability"], row["metric"]): row for row in exam["scores"]}


def _unlike(first: Result, second: Result) -> list[str]:
    """Abilities that were asked on other data in the second exam."""
    ours, theirs = (of_cells(exam, "data_sha256") for exam in (first, second))
    return [ability for ability in ours if ability in theirs and ours[ability] != theirs[ability]]


def _costs(first: Result, second: Result) -> Iterator[list[str]]:
    """What models cost in both exams."""
    if first["exam"]["speed_length"] != second["exam"]["speed_length"]:
        return
    for model in first["models"]:
        for key, (title, unit, scale, _) in COSTS.items():
            ours, theirs = (cost(exam, model, key) for exam in (first, second))
            if ours and theirs:
                values = (f"{number(value / scale)} {unit}" for value in (ours, theirs))
                yield [model, title, *values, f"{theirs / ours:.3f}"]


def _differences(first: Result, second: Result) -> str:
    """A line for each difference in machine, versions, settings, and the keys of shared models."""
    both = [(key, first[key], second[key]) for key in CONDITIONS]
    both += [(key, first["exam"][key], second["exam"][key]) for key in SETTINGS]
    abilities = {each["name"]: each for each in second["abilities"]}
    both += [
        (f"the ability {each['name']}", each, abilities[each["name"]])
        for each in first["abilities"]
        if each["name"] in abilities
    ]
    both += [
        (f"the keys of {model}", keys, second["keys"][model])
        for model, keys in first["keys"].items()
        if model in second["keys"]
    ]
    return differences(both)
