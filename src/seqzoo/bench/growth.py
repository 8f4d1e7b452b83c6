"""How times grow with length: exponents, and crossovers of two models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from seqzoo.bench.rows import FIGURES, Row, measured
from seqzoo.bench.statistics import fit


def exponents(
    points: Sequence[Row], models: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The exponent e of T^e for the time of one sequence, or of one token in decoding.

    It is fitted over the upper half of the lengths. `error` is the half width of its 95 % interval,
    `theory` the exponent of very long sequences.
    """
    for model, mode in product(models, FIGURES):
        rows = measured(points, model, mode)
        if len(rows) < 2:
            continue
        upper = rows[-max(2, (len(rows) + 1) // 2) :]
        while upper[-1]["length"] < 2 * upper[0]["length"] and len(upper) < len(rows):
            upper = rows[-len(upper) - 1 :]  # at least one octave
        x = np.log([row["length"] for row in upper])
        y = np.log([row["milliseconds"] / row["batch_size"] for row in upper])
        value, error = fit(x, y, [row["noise"] for row in upper])
        yield {
            "model": model,
            "mode": mode,
            "exponent": value,
            "error": error,
            "theory": int(mode != "decode") + bool(models[model]["grows"]),
            "from": upper[0]["length"],
            "to": upper[-1]["length"],
        }


def crossovers(
    points: Sequence[Row], models: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Where a model with a growing state becomes slower than one with a bounded state, and stays
    slower up to the longest length.

    `length` and `value`, the mode's figure there, are interpolated between two measured lengths, on
    a straight line in logarithms.
    """
    growing = [name for name in models if models[name]["grows"]]
    bounded = [name for name in models if not models[name]["grows"]]
    found = []
    for mode, slower, faster in product(FIGURES, growing, bounded):
        ours, theirs = (
            {row["length"]: row for row in measured(points, name, mode)}
            for name in (slower, faster)
        )
        if cross := _crossover(ours, theirs, FIGURES[mode]):
            length, value = cross
            place = {"mode": mode, "growing": slower, "bounded": faster}
            found.append({**place, "length": length, "value": value})
    return found


def _crossover(
    growing: Mapping[int, Row], bounded: Mapping[int, Row], figure: str
) -> tuple[float, float] | None:
    """Length and figure where the growing one falls behind for good; None where it never does, or
    where that may be noise."""
    both = sorted(growing.keys() & bounded.keys())
    lead = [math.log(bounded[T]["milliseconds"] / growing[T]["milliseconds"]) for T in both]
    ahead = [i for i, value in enumerate(lead) if value > 0]
    if not ahead or ahead[-1] + 1 == len(both):
        return None
    ends = (growing[both[-1]]["noise"], bounded[both[-1]]["noise"])
    if -lead[-1] <= math.hypot(*(noise or 0 for noise in ends)):
        return None
    i = ahead[-1]
    share = lead[i] / (lead[i] - lead[i + 1])
    first, second = (growing[both[j]][figure] for j in (i, i + 1))
    length = both[i] ** (1 - share) * both[i + 1] ** share
    return length, first ** (1 - share) * second**share
