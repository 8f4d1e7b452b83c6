"""Two benches compared: whether their points agree within the noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqzoo.analysis.compare.pair import Result, differences, read_two
from seqzoo.errors import UserError
from seqzoo.report.text import length, markdown

SAME_POINT = ("model", "mode", "length", "batch_size")
MACHINE = ("name", "device", "dtype", "threads", "versions")
SETTINGS = ("parameters", "vocab_size", "threads", "compile", "decode_batch_size")


def compare_benches(folders: Sequence[Path]) -> tuple[str, int, int]:
    """The ratio of each point that two benches share, and whether it is within their noise.

    Returns:
        The table in Markdown, the number of points that agree, and the number of all.

    Raises:
        UserError: not two benches, or nothing in common.
    """
    first, second = read_two(folders, "bench.json")
    ours, theirs = map(_measured, (first, second))
    rows, agree = [], 0
    for key in (key for key in ours if key in theirs):
        row, other = ours[key], theirs[key]
        ratio = other["milliseconds"] / row["milliseconds"]
        noises = row["noise"], other["noise"]
        known = None not in noises  # of a bench of one round it is not
        noise = math.hypot(*noises) if known else math.nan
        within = abs(math.log(ratio)) <= noise  # not where the noise is not known
        agree += within
        about = f"{100 * noise:.0f} %" if known else "unknown"
        shown = [f"{ratio:.3f}", about, "" if within or not known else "apart"]
        rows.append([f"{row['model']} {row['mode']}", length(row["length"]), *shown])
    if not rows:
        raise UserError(f"{folders[0]} and {folders[1]} have no point in common")
    head = ["point", "T", "time, second / first", "noise", ""]
    return _differences(first, second) + markdown(head, rows), agree, len(rows)


def _measured(bench: Mapping[str, Any]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """The rows that have a figure, by what makes two points the same."""
    rows = (row for row in bench["points"] if row["status"] == "ok")
    return {tuple(row[key] for key in SAME_POINT): row for row in rows}


def _differences(first: Result, second: Result) -> str:
    """A line for each difference of two benches in machine, settings and number of points."""
    both = [(key, first["machine"][key], second["machine"][key]) for key in MACHINE]
    both += [(key, first["bench"].get(key), second["bench"].get(key)) for key in SETTINGS]
    both.append(("points", len(first["points"]), len(second["points"])))
    return differences(both)
