"""From samples to figures one can believe: quartiles, noise, exponents, crossovers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

# 97.5 % quantiles of Student's t distribution by degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
FAST = 0.25  # the quantile over rounds that is a point's figure
_PRIOR = 8  # how many degrees of freedom the noise of a mode as a whole counts for at one point

COLUMNS = (
    "model mode length batch_size status tokens_per_second milliseconds noise median_milliseconds "
    "spread repeats rounds steady state_bytes peak_bytes base_bytes flops peak_share backend dim "
    "parameters note"
).split()
FIGURES = {  # the column that is a mode's figure
    "train": "tokens_per_second",
    "prefill": "tokens_per_second",
    "decode": "milliseconds",
}


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What `runner.run` returned, with a row of COLUMNS for each point, its `samples` (seconds a
    call, of each round) beside them, and the exponents.

    `milliseconds` is of one call: a step, a prompt, a token of each sequence. It is the lower
    quartile over rounds of the rounds' medians, because a busy neighbour only ever slows a round
    down: where it slows some of them, the quartile moves less from one bench to the next than the
    median does (docs/design.md).
    `median_milliseconds` is the median over rounds; `spread` the distance between the quartiles,
    relative to it. `noise` is relative: the figure of endless rounds is within it of this one in at
    least 95 of 100 cases, as far as rounds tell; in more where a point is quieter than its
    mode.
    """
    points = [_row(point, raw) for point in raw["points"]]
    for mode in FIGURES:
        _add_noise([row for row in points if row["mode"] == mode])
    return {**raw, "points": points, "exponents": list(exponents(points, raw["models"]))}


def _row(point: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    rounds, about = point["rounds"], raw["models"][point["model"]]
    row |= {key: value for key, value in point.items() if key in COLUMNS}
    row |= {"dim": about["keys"]["dim"], "parameters": about["parameters"], "rounds": len(rounds)}
    row["samples"] = [statistics.median(one["times"]) for one in rounds]
    if len(rounds) == 1:  # what differs from one round to the next is not to be seen then
        row["samples"] = rounds[0]["times"]
    if not rounds:
        return row
    T, B = point["length"], point["batch_size"]
    seconds, median, upper = (float(np.quantile(row["samples"], q)) for q in (FAST, 0.5, 0.75))
    steady = [one["steady"] for one in rounds]
    first, growth = about["flops_first"], about["flops_growth"]
    if point["mode"] == "decode":
        tokens, flops = B, B * (first + (T - 1) * growth)
    else:  # the sum over tokens 1 to T; a backward pass is two forward ones
        tokens, flops = B * T, B * (T * first + T * (T - 1) // 2 * growth)
        flops *= 3 if point["mode"] == "train" else 1
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


def _add_noise(rows: Sequence[dict[str, Any]]) -> None:
    """The half width of the 95 % interval of each figure, relative.

    How far a figure moves is found by drawing its rounds again, with repetition (the bootstrap).
    Rounds are few, so a point's own answer says little: it is pooled with that of the whole mode,
    as a variance known from _PRIOR rounds would be.
    """
    variances: dict[int, tuple[float, int]] = {}  # of the figure's logarithm; samples
    for index, row in enumerate(rows):
        if (n := len(row["samples"])) > 1:
            drawn = np.random.default_rng(0).integers(n, size=(1000, n))
            figures = np.quantile(np.log(row["samples"])[drawn], FAST, axis=1)
            variances[index] = float(figures.var()) * n / (n - 1), n
    if not variances:
        return
    whole = statistics.mean(variance for variance, _ in variances.values())
    for index, (own, n) in variances.items():
        freedom = n - 1 + _PRIOR
        pooled = ((n - 1) * own + _PRIOR * whole) / freedom
        rows[index]["noise"] = t_quantile(freedom) * math.sqrt(pooled)


def t_quantile(freedom: int) -> float:
    """Of Student's distribution, at 97.5 %."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom


# ---- what the points say together


def exponents(
    points: Sequence[Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """How the time of one sequence (of one token, for decoding) grows: e of T^e, fitted over the
    upper half of the lengths, with the half width of its 95 % interval, and what theory says of
    long sequences."""
    for model, about in models.items():
        for mode in FIGURES:
            rows = measured(points, model, mode)
            if len(rows) < 2:
                continue
            upper = rows[-max(2, (len(rows) + 1) // 2) :]
            while upper[-1]["length"] < 2 * upper[0]["length"] and len(upper) < len(rows):
                upper = rows[-len(upper) - 1 :]  # an octave at least
            x = np.log([row["length"] for row in upper])
            y = np.log([row["milliseconds"] / row["batch_size"] for row in upper])
            theory = (1 if mode == "decode" else 2) if about["grows"] else int(mode != "decode")
            value, error = fit(x, y, [row["noise"] for row in upper])
            yield {
                "model": model,
                "mode": mode,
                "exponent": value,
                "error": error,
                "theory": theory,
                "from": upper[0]["length"],
                "to": upper[-1]["length"],
            }


def fit(x: Any, y: Any, noise: Sequence[float | None]) -> tuple[float, float | None]:
    """Slope of a line, and the half width of its 95 % interval: from the noise of the points or
    from how far they are off the line, whichever is larger."""
    centred = x - x.mean()
    spread = float((centred**2).sum())
    slope = float((centred * y).sum()) / spread
    errors = []
    if all(n is not None for n in noise):
        errors.append(
            math.sqrt(sum((c * n) ** 2 for c, n in zip(centred, noise, strict=True))) / spread
        )
    if (freedom := len(x) - 2) > 0:
        residual = y - y.mean() - slope * centred
        errors.append(
            t_quantile(freedom) * math.sqrt(float((residual**2).sum()) / freedom / spread)
        )
    return slope, max(errors, default=None)


def crossovers(
    points: Sequence[Mapping[str, Any]], models: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Where a family with a growing state falls behind one with a bounded state, and stays behind
    up to the longest length measured: `length` and the mode's figure, `value`, on a straight line
    between two measured lengths, in logarithms."""
    found = []
    for mode, growing, bounded in product(FIGURES, models, models):
        if not models[growing]["grows"] or models[bounded]["grows"]:
            continue
        ours, theirs = (
            {row["length"]: row for row in measured(points, name, mode)}
            for name in (growing, bounded)
        )
        both = sorted(ours.keys() & theirs.keys())
        lead = [math.log(theirs[T]["milliseconds"] / ours[T]["milliseconds"]) for T in both]
        ahead = [i for i, value in enumerate(lead) if value > 0]
        if not ahead or ahead[-1] + 1 == len(both):
            continue
        ends = (ours[both[-1]]["noise"], theirs[both[-1]]["noise"])
        if -lead[-1] <= math.hypot(*(noise or 0 for noise in ends)):  # it may be chance
            continue
        i = ahead[-1]
        share = lead[i] / (lead[i] - lead[i + 1])
        value = [ours[both[j]][FIGURES[mode]] for j in (i, i + 1)]
        found.append(
            {
                "mode": mode,
                "growing": growing,
                "bounded": bounded,
                "length": both[i] ** (1 - share) * both[i + 1] ** share,
                "value": value[0] ** (1 - share) * value[1] ** share,
            }
        )
    return found


def measured(points: Sequence[Mapping[str, Any]], model: str, mode: str) -> list[Mapping[str, Any]]:
    """The rows of a model's mode that have a figure, lengths ascending."""
    rows = [row for row in points if (row["model"], row["mode"]) == (model, mode)]
    return sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["length"])
