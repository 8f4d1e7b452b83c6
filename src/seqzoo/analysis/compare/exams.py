"""Two exams side by side: the score of each model in each ability, and whether it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqzoo.analysis.compare.pair import Result, differences, read_two
from seqzoo.errors import UserError
from seqzoo.exam.words import overlap, shown
from seqzoo.report.text import markdown, number

EXAM = "exam.json"
CONDITIONS = ("machine", "versions", "keys")  # of exam.json, beside its settings
SETTINGS = ("parameters", "rates", "seeds", "steps", "seconds", "language_seconds", "text")


def compare_exams(folders: Sequence[Path]) -> str:
    """The scores that two exams share, side by side, in Markdown.

    Raises:
        UserError: not two exams, or no score in common.
    """
    first, second = read_two(folders, EXAM)
    ours, theirs = map(_scores, (first, second))
    rows = []
    for key in (key for key in ours if key in theirs):
        row, other = ours[key], theirs[key]
        apart = row["low"] is not None and other["low"] is not None and not overlap(row, other)
        change = f"{'+' * (other['mean'] >= row['mean'])}{number(other['mean'] - row['mean'])}"
        rows.append([*key, shown(row), shown(other), change, "apart" if apart else ""])
    if not rows:
        raise UserError(f"{folders[0]} and {folders[1]} have no model and ability in common")
    head = ["model", "ability", "first", "second", "change", "intervals"]
    return _differences(first, second) + markdown(head, rows)


def _scores(exam: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["model"], row["ability"]): row for row in exam["scores"]}


def _differences(first: Result, second: Result) -> str:
    """A line for each difference in machine, versions, keys of models, and settings."""
    both = [(key, first.get(key), second.get(key)) for key in CONDITIONS]
    both += [(key, first["exam"].get(key), second["exam"].get(key)) for key in SETTINGS]
    return differences(both)
