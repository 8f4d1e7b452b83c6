"""What has to hold among the keys that name a task's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqzoo.errors import UserError

TABLES = ("path", "val_path", "test_path")
TWINS = ("source", "target", "val_source", "val_target", "test_source", "test_target")


def corpus_or_files(keys: Mapping[str, Any], where: str) -> None:
    """Refuse a corpus beside files, and a file for validation or test without one to train on."""
    tables, twins = _given(keys, TABLES), _given(keys, TWINS)
    if keys.get("corpus") is not None and (tables or twins):
        raise UserError(f"{where}corpus={keys['corpus']}, and files too, are given: give one")
    if tables and twins:
        raise UserError(
            f"{where}path, and {where}source with {where}target, are both given: give one"
        )
    if tables and keys.get("path") is None:
        raise UserError(f"{where}{tables[0]} is given without {where}path: give both")


def twins_are_complete(keys: Mapping[str, Any], where: str) -> None:
    """Refuse a file of sources without its file of targets, or the reverse."""
    for option in (given := _given(keys, TWINS)):
        prefix, side = option[:-6], option[-6:]
        other = {"source": "target", "target": "source"}[side]
        for needed in (f"{prefix}{other}", side):
            if needed not in given:
                raise UserError(f"{where}{option} is given without {where}{needed}: give both")


def lowercase_of_files(keys: Mapping[str, Any], where: str) -> None:
    """Refuse lower case for pairs that are made, which are used as they are."""
    corpus = keys.get("corpus") or "numbers"
    made = not _given(keys, TABLES + TWINS) and "/" not in corpus
    if keys.get("lowercase") and made:
        raise UserError(
            f"{where}lowercase=true: of files and hub data sets: {where}corpus={corpus} is used as "
            "it is: leave it out"
        )


def _given(keys: Mapping[str, Any], options: tuple[str, ...]) -> list[str]:
    return [option for option in options if keys.get(option) is not None]
