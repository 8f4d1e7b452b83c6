"""Numbers and tables as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Table(NamedTuple):
    """A table of text cells; the first column names the rows."""

    head: list[str]
    rows: list[list[str]]


def number(value: float | None, digits: int = 3) -> str:
    """A number with that many significant digits: 41,800; 1.23; 0.0456. None is empty text."""
    if value is None:
        return ""
    if isinstance(value, int) and abs(value) < 10**digits or value == 0:
        return f"{value:,}"
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= 10 ** (digits - 1):
        return f"{rounded:,.0f}"
    if abs(rounded) >= 1:
        return f"{rounded:.{digits - len(str(int(abs(rounded))))}f}"
    return f"{rounded:.{digits}g}" if abs(rounded) < 1e-4 else f"{rounded:#.{digits}g}"


def length(value: float) -> str:
    """A number of tokens: 64, 512, 1K, 128K."""
    whole = round(value)
    return f"{whole // 1024}K" if whole >= 1024 and whole % 1024 == 0 else f"{whole:,}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "| " + " | ".join(padded) + " |\n"

    rule = line(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return line(head) + rule + "".join(map(line, rows))


def to_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV table with one line a row. Values of other columns are left out."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def visible(text: str) -> str:
    """The text with marks in place of spaces, tabs and new lines."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
