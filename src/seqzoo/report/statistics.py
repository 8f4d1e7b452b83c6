"""Student's t distribution, for intervals over few measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# 97.5 % quantiles by degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of two or more values, by Student's t distribution."""
    return t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


class Difference(NamedTuple):
    """The mean of one setting less that of another over the seeds that both have, with its 95 %
    interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def apart(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """How much larger `theirs` is, by the paired t interval over the seeds of both: runs of one
    seed read the same batches. None with fewer than two such seeds.

    Args:
        ours, theirs: the value of each seed.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return None
    pairs = [theirs[seed] - ours[seed] for seed in seeds]
    mean, half = statistics.fmean(pairs), half_width(pairs)
    return Difference(mean, mean - half, mean + half, len(seeds))
