"""Mean loss and speed of the steps since the last line of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from seqzoo.training.step import StepResult


class Meter:
    """Sums over a window of steps, kept on the device until they are needed.

    Attributes:
        step_seconds: time of all steps, of earlier windows too; without evaluations and samples.
    """

    def __init__(self, device: torch.device, step_seconds: float) -> None:
        self.device, self.step_seconds = device, step_seconds
        self._last_loss = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin a window."""
        self.steps = self.tokens = 0
        self.seconds = 0.0
        self._loss = torch.zeros((), dtype=torch.float64, device=self.device)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Inside, time is that of steps."""
        started = time.perf_counter()
        yield
        took = time.perf_counter() - started
        self.seconds += took
        self.step_seconds += took

    def add(self, result: StepResult) -> None:
        self._loss += result.loss
        self.steps += 1
        self.tokens += result.tokens

    def settle(self) -> None:
        """Wait until the device has done its steps: after this the time is all of theirs."""
        if self.device.type == "cuda":
            with self.timed():
                torch.cuda.synchronize(self.device)

    def loss(self) -> float:
        """Mean loss of the window's steps, or of the last window's before the first of them. This
        waits for the device."""
        if self.steps:
            with self.timed():
                self._last_loss = self._loss.item() / self.steps
        return self._last_loss

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)
