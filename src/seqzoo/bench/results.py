"""From the times of all rounds to a row for each point: its figure, how far to trust it, and how
figures grow with length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from seqzoo.models.flops import TokenFlops
from seqzoo.report.statistics import t_quantile

Row = Mapping[str, Any]

COLUMNS = (
    "model mode length batch_size status tokens_per_second milliseconds noise median_milliseconds "
    "spread repeats rounds steady state_bytes peak_bytes base_bytes over_base_bytes flops "
    "peak_share backend dim parameters note"
).split()
FIGURES = {  # the column that is a mode's figure
    "train": "tokens_per_second",
    "prefill": "tokens_per_second",
    "decode": "milliseconds",
}


def measured(points: Sequence[Row], model: str, mode: str) -> list[Row]:
    """The rows of a model's mode that have a figure, lengths ascending."""
    rows = [row for row in points if (row["model"], row["mode"]) == (model, mode)]
    return sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["length"])


def summarise(
    points: Sequence[Row], models: Mapping[str, Row], peak_flops: float
) -> list[dict[str, Any]]:
    """A row of COLUMNS for each point; `flops_per_token`; and `samples`: seconds a call, one for
    each round.

    Args:
        points: each with its `status`, a `note` and `rounds`, results of `measure.point`.
        peak_flops: FLOP/s that the machine reaches.

    `milliseconds` is the time of one call: a step, a prompt, or a token of each sequence. It is the
    lower quartile over rounds of the rounds' medians, because a busy neighbour only ever slows a
    round down: where it slows some of them, the quartile moves less from one bench to the next than
    the median does (docs/design.md). `median_milliseconds` is the median over rounds; `spread` the
    distance between the quartiles, relative to it.

    `noise` is relative. In at least 95 of 100 cases, the figure of infinitely many rounds differs
    by no more than that from this one, as far as the rounds can show it.
    """
    rows = [_row(point, models[point["model"]], peak_flops) for point in points]
    for mode in FIGURES:
        alike = [row for row in rows if row["mode"] == mode]
        for row, width in zip(alike, noise([row["samples"] for row in alike]), strict=True):
            row["noise"] = width
    return rows


def _row(point: Row, about: Row, peak_flops: float) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    rounds = point["rounds"]
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
        "over_base_bytes": max(one["peak_bytes"] - one["base_bytes"] for one in rounds),
        "flops": flops,
        "flops_per_token": flops / tokens,
        "peak_share": flops / seconds / peak_flops,
        "backend": rounds[0]["backend"],
    }


def _work(point: Row, about: Row) -> tuple[int, int]:
    """Tokens and FLOPs of one call."""
    T, B = point["length"], point["batch_size"]
    bends = about.get("flops_bends", ())  # older results have none
    flops = TokenFlops(about["flops_first"], about["flops_growth"], bends)
    if point["mode"] == "decode":
        return B, B * flops.at(T)
    forward = B * flops.total(T)
    return B * T, forward * (3 if point["mode"] == "train" else 1)  # backward: twice a forward pass


FAST = 0.25  # the quantile over rounds that is a point's figure
PRIOR_FREEDOM = 8  # degrees of freedom for which the noise of a whole mode counts at one point


def noise(samples: Sequence[Sequence[float]]) -> list[float | None]:
    """The relative half width of the 95 % interval of each point's figure, from its samples.

    How far a figure moves is found by drawing its samples again, with repetition (the bootstrap).
    There are few of them, so the variance of one point is uncertain: it is pooled with the mean
    variance of all points, which counts as one known from PRIOR_FREEDOM degrees of freedom. A point
    with fewer than two samples has None.
    """
    variances: dict[int, tuple[float, int]] = {}  # of the figure's logarithm; number of samples
    for index, values in enumerate(samples):
        if (n := len(values)) > 1:
            drawn = np.random.default_rng(0).integers(n, size=(1000, n))
            figures = np.quantile(np.log(values)[drawn], FAST, axis=1)
            variances[index] = float(figures.var()) * n / (n - 1), n
    found: list[float | None] = [None] * len(samples)
    if variances:
        whole = statistics.mean(variance for variance, _ in variances.values())
        for index, (own, n) in variances.items():
            freedom = n - 1 + PRIOR_FREEDOM
            pooled = ((n - 1) * own + PRIOR_FREEDOM * whole) / freedom
            found[index] = t_quantile(freedom) * math.sqrt(pooled)
    return found


def fit(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], noise: Sequence[float | None]
) -> tuple[float, float | None]:
    """Slope of a line, and the half width of its 95 % interval.

    The interval comes from the noise of the points or from their distances to the line, whichever
    makes it wider; None where neither is known.
    """
    centred = x - x.mean()
    spread = float((centred**2).sum())
    slope = float((centred * y).sum()) / spread
    errors = []
    known = [each for each in noise if each is not None]
    if len(known) == len(noise):
        errors.append(math.sqrt(float(((centred * np.array(known)) ** 2).sum())) / spread)
    if (freedom := len(x) - 2) > 0:
        residual = y - y.mean() - slope * centred
        deviation = math.sqrt(float((residual**2).sum()) / freedom / spread)
        errors.append(t_quantile(freedom) * deviation)
    return slope, max(errors, default=None)


def exponents(points: Sequence[Row], models: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
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


def crossovers(points: Sequence[Row], models: Mapping[str, Row]) -> list[dict[str, Any]]:
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
