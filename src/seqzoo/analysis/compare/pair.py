"""Two results of one kind: their files, and how their conditions differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from seqzoo.errors import UserError

Result = dict[str, Any]  # the content of bench.json or exam.json


def read_two(folders: Sequence[Path], file: str) -> tuple[Result, Result]:
    """The content of a file in each of two directories.

    Raises:
        UserError: not two, or one cannot be read.
    """
    kind = Path(file).stem
    if len(folders) != 2:
        given = ", ".join(map(str, folders))
        raise UserError(
            f"{given}: give two directories of `seqzoo {kind}`, or training runs; one alone is "
            "described by its report.html"
        )
    first, second = (_read(folder / file, kind) for folder in folders)
    return first, second


def _read(path: Path, kind: str) -> Result:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give a directory of `seqzoo {kind}`") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): run that `seqzoo {kind}` again") from None


def differences(values: Iterable[tuple[str, Any, Any]]) -> str:
    """A line for each name whose two values are not equal, and an empty line after them."""
    lines = [f"They differ in {name}: {a}; {b}\n" for name, a, b in values if a != b]
    return "".join(lines) + "\n" * bool(lines)
