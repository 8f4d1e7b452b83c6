"""Runs of one configuration, which differ in the seed alone: their mean, how far they spread, and
whether the means of two configurations differ by more than chance."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqzoo import tasks
from seqzoo.analysis.compare.runs import SEED, TrainingRun, distinct_end, name_by_keys
from seqzoo.report.statistics import Difference, paired

OF_A_SITTING = (SEED, "resume", "plugins", "logger.", "requires.", "hydra.")  # no part of a setting


@dataclass
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        name: the model, and the keys by which it differs from the other groups.
        runs: at least one, each of another seed.
    """

    name: str
    runs: list[TrainingRun]

    @property
    def ranked(self) -> list[TrainingRun]:
        """The runs whose results count: the finished ones."""
        return [run for run in self.runs if run.finished]

    @property
    def status(self) -> str:
        """`finished`, or how many of the runs ended in which way."""
        counts = Counter(run.status for run in self.runs)
        if len(self.runs) == 1 or list(counts) == ["finished"]:
            return next(iter(counts))
        return ", ".join(f"{n} {status}" for status, n in counts.items())

    def results(self, metric: str) -> dict[int | None, float]:
        """The result of each seed; of a group without a finished run, as far as it is known."""
        found = {run.seed: run.result(metric) for run in self.ranked or self.runs}
        return {seed: value for seed, value in found.items() if not math.isnan(value)}

    def mean(self, metric: str) -> float:
        """The mean over seeds; NaN where nothing was measured."""
        values = list(self.results(metric).values())
        return float(np.mean(values)) if values else math.nan

    def deviation(self, metric: str) -> float | None:
        """The standard deviation over seeds (n - 1 in the denominator); None for one seed."""
        values = list(self.results(metric).values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def grouped(runs: Sequence[TrainingRun]) -> list[Group]:
    """Runs as groups, and both named by what tells them apart. A second run of a configuration and
    a seed begins a group of its own."""
    found: dict[tuple[str, int], list[TrainingRun]] = {}
    seen: Counter[tuple[str, int | None]] = Counter()
    for run in runs:
        setting = json.dumps(
            {key: value for key, value in run.keys.items() if not key.startswith(OF_A_SITTING)},
            sort_keys=True,
            default=str,
        )
        found.setdefault((setting, seen[setting, run.seed]), []).append(run)
        seen[setting, run.seed] += 1
    members = list(found.values())
    firsts = [runs[0] for runs in members]
    names = [name_by_keys(a, [b for b in firsts if b.model == a.model]) for a in firsts]
    groups = []
    for name, first, runs in zip(names, firsts, members, strict=True):
        same = [f.folder for f, other in zip(firsts, names, strict=True) if other == name]
        if len(same) > 1:
            name = f"{name} ({distinct_end(first.folder, same)})"
        groups.append(Group(name, sorted(runs, key=lambda run: run.seed or 0)))
    for group in groups:
        for run in group.runs:
            run.name = group.name if len(group.runs) == 1 else f"{group.name} seed={run.seed}"
    return groups


def best_first(groups: Sequence[Group], metric: str) -> list[Group]:
    """The groups in the order of their means, then those that cannot be ranked: those without a
    finished run, or without the metric."""
    sign = -1 if tasks.metric(metric, groups[0].runs[0].task).higher_is_better else 1

    def place(group: Group) -> tuple[bool, float]:
        mean = group.mean(metric)
        unranked = not group.ranked or math.isnan(mean)
        return unranked, 0.0 if unranked else sign * mean

    return sorted(groups, key=place)


def difference(first: Group, second: Group, metric: str) -> Difference | None:
    """How much larger the metric of `second` is, over the seeds of both."""
    ours, theirs = (group.results(metric) if group.ranked else {} for group in (first, second))
    known = (
        {seed: value for seed, value in each.items() if seed is not None} for each in (ours, theirs)
    )
    return paired(*known)


Array = np.ndarray[Any, Any]


def mean_curve(group: Group, metric: str, axis: str) -> tuple[Array, Array, Array | None]:
    """The mean over seeds where all of them have the metric, and its standard deviation: points x,
    means, deviations. Between a run's points its curve is a straight line. Of runs that have no
    place in common: one point, the means of their last ones. Of one run: its points, and None."""
    curves = [np.array(run.curve(metric, axis), dtype=float) for run in group.ranked or group.runs]
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        return np.empty(0), np.empty(0), None
    if len(curves) == 1:
        return curves[0][:, 0], curves[0][:, 1], None
    begin = max(curve[0, 0] for curve in curves)
    end = min(curve[-1, 0] for curve in curves)
    if begin > end:  # they have no place in common: their last points
        x, values = np.stack([curve[-1] for curve in curves], 1)
        return x.mean(keepdims=True), values.mean(keepdims=True), values.std(ddof=1, keepdims=True)
    x = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    x = x[(x >= begin) & (x <= end)]
    values = np.stack([np.interp(x, curve[:, 0], curve[:, 1]) for curve in curves])
    return x, values.mean(0), values.std(0, ddof=1)
