"""The terminal: a bar, and lines above it. Plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from seqzoo.tasks.task import Metric
    from seqzoo.training.training import Training

WIDTH = 80  # columns that a line may have
REFRESH = 0.2  # seconds between two looks at the loss, which wait for the device


class Terminal:
    """What a run prints.

    Args:
        metrics: what an evaluation's line shows, as far as there is room.
        quiet: print nothing.
    """

    def __init__(self, metrics: Sequence[Metric], *, quiet: bool) -> None:
        self.metrics, self.quiet = metrics, quiet
        self.bar = tqdm(
            total=1.0,
            disable=quiet or not sys.stderr.isatty(),
            bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            leave=False,
        )
        self._began: tuple[float, float] | None = None  # progress and time of the first step shown
        self._next = 0.0
        self._step = 0
        self._took: dict[str, float] = {}  # seconds of the last evaluation, of the last sample

    def step(self, training: Training) -> None:
        """Show a step, if there is a bar and it is time again."""
        now, self._step = time.perf_counter(), training.step
        if self.bar.disable or now < self._next:
            return
        self._next = now + REFRESH
        progress = min(1.0, training.progress)
        speed = training.meter.tokens_per_second
        self._show(
            f"step {training.step:,}  train loss {training.mean_loss():.3f}  "
            f"{speed:,.0f} tokens/s  {self._remaining(progress, now)}",
            progress,
        )

    def _remaining(self, progress: float, now: float) -> str:
        """The time left: at the speed so far, with the last evaluation and sample once more."""
        first, began = self._began = self._began or (progress, now)
        if progress <= first:
            return ""
        left = (now - began) / (progress - first) * (1 - progress) + sum(self._took.values())
        return f"{tqdm.format_interval(left)} left"

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Inside, the bar shows what is done in place of steps."""
        started = time.perf_counter()
        self._show(f"step {self._step:,}  {what}")
        yield
        self._took[what] = time.perf_counter() - started
        self._next = 0.0

    def _show(self, text: str, progress: float | None = None) -> None:
        if not self.bar.disable:
            self.bar.n = self.bar.n if progress is None else progress
            self.bar.set_description_str(text, refresh=True)

    def evaluation(self, step: int, seconds: float | None, metrics: Mapping[str, float]) -> None:
        self.line(evaluation_line(step, seconds, metrics, self.metrics))

    def line(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()


def evaluation_line(
    step: int, seconds: float | None, metrics: Mapping[str, float], declared: Sequence[Metric]
) -> str:
    """Step, seconds (None: those of the step are not known), then the metrics that a task declares,
    as many as there is room for; those of the test split come last and have its name before
    theirs."""
    line = f"step {step:>6,} " + (" " * 8 if seconds is None else f"{seconds:>6.0f} s")
    for split in ("val", "test"):
        for metric in declared:
            value = metrics.get(f"{split}/{metric.name}")
            if value is None:
                continue
            name = metric.name if split == "val" else f"test {metric.name}"
            shown = f"{value:.1f}%" if metric.unit == "%" else f"{value:.4f}"
            part = f"  {name} {shown:>7}"
            if len(line) + len(part) > WIDTH:
                return line
            line += part
    return line
