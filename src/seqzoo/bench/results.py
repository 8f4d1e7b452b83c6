"""From the times of all rounds to one row a point: its figure, and how far to trust it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from seqzoo.bench.growth import exponents
from seqzoo.bench.rows import COLUMNS, FIGURES
from seqzoo.bench.statistics import FAST, noise


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `runner.run` with a row of COLUMNS for each point, and the exponents.

    Each row also has `samples`: seconds a call, one for each round.

    `milliseconds` is the time of one call: a step, a prompt, or a token of each sequence. It is the
    lower quartile over rounds of the rounds' medians, because a busy neighbour only ever slows a
    round down: where it slows some of them, the quartile moves less from one bench to the next than
    the median does (docs/design.md). `median_milliseconds` is the median over rounds; `spread` the
    distance between the quartiles, relative to it.

    `noise` is relative. In at least 95 of 100 cases, the figure of infinitely many rounds differs
    by no more than that from this one, as far as the rounds can show it.
    """
    points = [_row(point, raw) for point in raw["points"]]
    for mode in FIGURES:
        rows = [row for row in points if row["mode"] == mode]
        for row, width in zip(rows, noise([row["samples"] for row in rows]), strict=True):
            row["noise"] = width
    return {**raw, "points": points, "exponents": list(exponents(points, raw["models"]))}


def _row(point: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    rounds, about = point["rounds"], raw["models"][point["model"]]
    row |= {key: value for key, value in point.items() if key in COLUMNS}
    row |= {"dim": about["keys"]["dim"], "parameters": about["parameters"], "rounds": len(rounds)}
    row["samples"] = [statistics.median(one["times"]) for one in rounds]
    if len(rounds) == 1:  # differences between rounds are not known then
        row["samples"] = rounds[0]["times"]
    if not rounds:
        return row
    seconds, median, upper = (float(np.quantile(row["samples"], q)) for q in (FAST, 0.5, 0.75))
    steady = [one["steady"] for one in rounds]
    tokens, flops = _work(point, about)
    return row | {
        "tokens_per_second": tokens / seconds,
        "milliseconds": 1000 * seconds,
        "median_milliseconds": 1000 * median,
        "spread": (upper - seconds) / median,
        "repeats": sum(len(one["times"]) for one in rounds),
        "steady": None if None in steady else all(steady),
        "state_bytes": rounds[0]["state_bytes"],
        "peak_bytes": max(one["peak_bytes"] for one in rounds),
        "base_bytes": rounds[0]["base_bytes"],
        "flops": flops,
        "peak_share": flops / seconds / raw["machine"]["peak_flops"],
        "backend": rounds[0]["backend"],
    }


def _work(point: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens and FLOPs of one call."""
    T, B = point["length"], point["batch_size"]
    first, growth = about["flops_first"], about["flops_growth"]
    if point["mode"] == "decode":
        return B, B * (first + (T - 1) * growth)
    forward = B * (T * first + T * (T - 1) // 2 * growth)  # the sum over tokens 1 to T
    return B * T, forward * (3 if point["mode"] == "train" else 1)  # backward: twice a forward pass
