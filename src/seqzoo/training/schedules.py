"""Schedules of the learning rate: warm-up, then a curve over the progress of the run.

A schedule is a function of (step, progress) that gives a factor on the peak learning rate. `step`
is counted from 0; `progress` is the share of the run that is over, 0 to 1, by the nearest limit.
Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from seqzoo.config.schema import checked
from seqzoo.config.values import Natural, Share

Schedule = Callable[[int, float], float]


@checked()
def cosine(*, warmup_steps: Natural, warmup_share: Share, lr_end: Share) -> Schedule:
    """Half a cosine from 1 to `lr_end` over the whole run (arXiv 1608.03983, eq. 5, no restart)."""

    def curve(progress: float) -> float:
        return lr_end + (1 - lr_end) * 0.5 * (1 + math.cos(math.pi * progress))

    return after_warmup(curve, warmup_steps, warmup_share)


@checked()
def wsd(
    *, warmup_steps: Natural, warmup_share: Share, decay_share: Share, lr_end: Share
) -> Schedule:
    """Warm-up, stable, decay: 1 until the last `decay_share` of the run, then a line to `lr_end`
    (arXiv 2404.06395, section 4)."""

    def curve(progress: float) -> float:
        left = 1 - progress
        return 1.0 if left >= decay_share else lr_end + (1 - lr_end) * left / decay_share

    return after_warmup(curve, warmup_steps, warmup_share)


@checked()
def linear(*, warmup_steps: Natural, warmup_share: Share, lr_end: Share) -> Schedule:
    """A line from 1 to `lr_end` over the whole run."""
    return after_warmup(lambda progress: 1 - (1 - lr_end) * progress, warmup_steps, warmup_share)


@checked()
def constant(*, warmup_steps: Natural, warmup_share: Share) -> Schedule:
    """1 after the warm-up."""
    return after_warmup(lambda progress: 1.0, warmup_steps, warmup_share)


def after_warmup(curve: Callable[[float], float], steps: int, share: float) -> Schedule:
    """A curve over the progress, times a line from 0 to 1 over so many steps or that share of the
    run, whichever is over first.

    Without a share, a run that is limited in time and makes few steps would end before it reaches
    its learning rate. A share of 1 counts steps alone.
    """

    def factor(step: int, progress: float) -> float:
        progress = min(1.0, progress)
        warm = (step + 1) / max(1, steps)
        if share < 1:
            warm = 1.0 if progress >= share else max(warm, progress / share)
        return min(1.0, warm) * curve(progress)

    return factor
