"""Training on the CPU beside other processes: with as many threads as there are free cores, and a
warning where steps become slow all the same.

The threads of a loop wait for the last one, and one that shares its core with a busy process is
always the last: two threads on two cores, one of them busy, are slower than one thread.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from seqzoo.training.hooks import Hook

if TYPE_CHECKING:
    from seqzoo.training.training import Training

LOOK_SECONDS = 2.0  # between two looks at the load
SLOW = 1 / 3  # of the best speed of the run so far
SLOW_SECONDS = 5.0  # of steps in a row, so that one late step is no reason to warn
STAT = Path("/proc/stat")  # Linux alone has it


class FollowLoad(Hook):
    """Leave the cores that other processes keep busy to them, and take them back later."""

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        self.next, self.reported = float("inf"), False

    def is_due(self, step: int) -> bool:
        return time.perf_counter() >= self.next

    def on_start(self, training: Training) -> None:
        if training.device.type == "cpu" and STAT.exists():
            self._look()

    def on_step(self, training: Training) -> None:
        began, used = self.began, self.used
        self._look()
        others = (self.used - used) / (self.began - began)
        free = len(os.sched_getaffinity(0)) - round(others)
        threads = max(1, min(self.most, free))
        if threads == torch.get_num_threads():
            return
        torch.set_num_threads(threads)
        if not self.reported:
            training.terminal.line(
                f"threads: {threads} of {self.most}, as other processes keep {others:.1f} cores "
                f"busy; this follows the load, and trainer.threads={self.most} would not"
            )
            self.reported = True

    def _look(self) -> None:
        self.began, self.used = time.perf_counter(), used_by_others()
        self.next = self.began + LOOK_SECONDS


def used_by_others() -> float:
    """Seconds that processes other than this one have used the cores that this one may use."""
    names = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    ticks = 0
    for line in STAT.read_text().splitlines():
        name, *counts = line.split()
        if name in names:
            user, nice, system, _, _, irq, softirq = map(int, counts[:7])
            ticks += user + nice + system + irq + softirq
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


class WarnIfSlow(Hook):
    """Say, once, that steps have become slow, as they do beside other busy processes."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.best, self.tokens, self.seconds = 0.0, 0, 0.0

    def on_start(self, training: Training) -> None:
        if training.device.type != "cpu":
            self.every = None

    def on_step(self, training: Training) -> None:
        self.tokens += training.meter.tokens
        self.seconds += training.meter.seconds
        if self.seconds < SLOW_SECONDS:
            return
        speed = self.tokens / self.seconds
        self.best, self.tokens, self.seconds = max(self.best, speed), 0, 0.0
        if speed < SLOW * self.best:
            training.terminal.line(
                f"slow: {speed:,.0f} tokens/s after {self.best:,.0f}, on {torch.get_num_threads()} "
                "threads: if other processes keep the cores busy, lower trainer.threads"
            )
            self.every = None
