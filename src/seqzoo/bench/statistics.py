"""How far to trust a figure that comes from few samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

# 97.5 % quantiles of Student's t distribution by degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
FAST = 0.25  # the quantile over rounds that is a point's figure
PRIOR_FREEDOM = 8  # degrees of freedom for which the noise of a whole mode counts at one point


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom


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
