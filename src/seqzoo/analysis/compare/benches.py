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
        verdict = ["unknown", ""]  # the noise of a bench of one round is not known
        if None not in noises:
            noise = math.hypot(*noises)
            within = abs(math.log(ratio)) <= noise
            agree += within
            verdict = [f"{100 * noise:.0f} %", "" if within else "apart"]
        point = f"{row['model']} {row['mode']}"
        rows.append([point, length(row["length"]), f"{ratio:.3f}", *verdict])
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
