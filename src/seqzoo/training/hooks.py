"""What happens now and then during a training, and at its end.

A hook is called after every step that is a multiple of its `every`: first the hooks of every run,
in the order of `run_hooks`, then those of the configuration (`hook=[NAME]`), then those given from
Python.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.training.settings import TrainerSettings

if TYPE_CHECKING:
    from seqzoo.training.training import Training


class Hook:
    """Does nothing: derive from it and override what is needed.

    Attributes:
        every: steps between two calls of `on_step`; None: it is never called.
    """

    every: int | None = None

    def is_due(self, step: int) -> bool:
        return self.every is not None and step % self.every == 0

    def on_start(self, training: Training) -> None:
        """Before the first step, of a resumed run too."""

    def on_step(self, training: Training) -> None:
        """After a step that is due. `training.is_last_step` tells whether `on_end` comes next."""

    def on_end(self, training: Training) -> None:
        """After the last step, which is saved; `training.status` is `finished` or `interrupted`."""


class Log(Hook):
    """Loss, learning rate, norm of the gradient and speed of the steps since the last line."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step(self, training: Training) -> None:
        values = {
            "train/loss": training.mean_loss(),
            "train/lr": training.lr,
            "train/grad_norm": float(training.grad_norm),
            "train/tokens_per_second": training.meter.tokens_per_second,
        }
        training.loggers.scalars(values, training.position())
        training.meter.begin()


class OnTheWay(Hook, ABC):
    """Acts on every step that is due but the last, which `on_end` follows.

    Attributes:
        done_at: the last step it acted on.
    """

    def __init__(self, every: int | None) -> None:
        self.every, self.done_at = every, -1

    def on_step(self, training: Training) -> None:
        if not training.is_last_step:
            self.done_at = training.step
            self.act(training)

    @abstractmethod
    def act(self, training: Training) -> None:
        """What is done on a step."""


class Evaluate(OnTheWay):
    """Measure the model, quickly on the way and thoroughly at the end, and keep the best one."""

    def act(self, training: Training) -> None:
        training.evaluate(quick=True)
        self.keep_the_best(training)

    def on_end(self, training: Training) -> None:
        if training.status == "finished":
            if self.done_at != training.step or training.task.quick_is_less:
                training.evaluate(quick=False)
            self.keep_the_best(training)

    def keep_the_best(self, training: Training) -> None:
        """Save the model if the first of the task's metrics is better than ever before."""
        value = training.metrics[training.best_metric]
        so_far = training.best.get("value")
        if not math.isfinite(value) or (so_far is not None and not training.better(value, so_far)):
            return
        training.save()
        training.best = {"value": value, "step": training.step}
        checkpoints = training.directory.checkpoints
        checkpoints.point("best", checkpoints.at(training.step), training.best)
        checkpoints.prune(keep=training.recent_checkpoints())


EVALUATIONS = 12  # of a run with trainer.eval_every=auto, at least; its last one is thorough
AT_LEAST_EVERY, FEWEST_STEPS = 500, 10  # steps between two evaluations: at most, at least
SHARE_OF_TIME = 0.05  # that they may take of a run that is limited by time


class EvaluateOften(Evaluate):
    """So often that a curve can be drawn, whatever the run's length: after each twelfth of the run,
    or every 10 steps where that is less often, and every 500 steps.

    A task whose evaluation is slow reads less on the way (`Task.shorten`). Then every point of the
    curve is of the same part of the data, and what the summary has is of all of it. In a run that
    the clock will end, an evaluation is left out while those before it have taken more than 5 % of
    the time; in others it depends on steps alone, so that a resumed run has the same.
    """

    def __init__(self) -> None:
        super().__init__(None)

    def on_start(self, training: Training) -> None:
        training.shorten_evaluations()
        self.training, self.seconds = training, 0.0
        self.part = int(EVALUATIONS * training.progress)

    def is_due(self, step: int) -> bool:
        progress = self.training.progress
        before, self.part = self.part, int(EVALUATIONS * progress)
        if self.training.ends_by_the_clock:
            affordable = self.seconds <= SHARE_OF_TIME * self.training.seconds
            return affordable and (self.part > before or step % AT_LEAST_EVERY == 0)
        total = round(step / progress)  # steps of the run
        parts = max(1, min(EVALUATIONS, total // FEWEST_STEPS))
        return parts * step // total > parts * (step - 1) // total or step % AT_LEAST_EVERY == 0

    def act(self, training: Training) -> None:
        began = training.seconds
        super().act(training)
        self.seconds += training.seconds - began

    def on_end(self, training: Training) -> None:
        if training.status == "finished" and training.shortened:
            if self.done_at != training.step:
                training.evaluate(quick=True)
                self.keep_the_best(training)
            training.terminal.line("on all of the validation data:")
            training.metrics = training.evaluate(quick=False, at=training.step)
        else:
            super().on_end(training)


class Sample(OnTheWay):
    """Log some output of the model, and figures of it."""

    def act(self, training: Training) -> None:
        with training.terminal.busy("sampling"), training.forward.uncompiled():
            text = training.task.sample(training.model)
            figures = training.task.figures(training.model)
        training.loggers.text("sample", text, training.step)
        training.loggers.figures(figures, training.step)
        training.terminal.line("\n".join(f"    | {line}" for line in text.splitlines()))

    def on_end(self, training: Training) -> None:
        if training.status == "finished" and self.done_at != training.step:
            self.act(training)


class SaveCheckpoint(OnTheWay):
    """Save the run, so that it can be resumed. The last step is always saved."""

    def act(self, training: Training) -> None:
        training.save()


def run_hooks(settings: TrainerSettings) -> list[Hook]:
    """The hooks of every run, in the order in which they are called after a step."""
    return [
        Log(settings.log_every),
        EvaluateOften() if settings.eval_every == "auto" else Evaluate(settings.eval_every),
        Sample(settings.sample_every),
        SaveCheckpoint(settings.checkpoint_every),
    ]


class EarlyStopping(Hook):
    """End the run when evaluations no longer improve the task's first metric.

    Args:
        patience: evaluations in a row that are no better than the best one.
    """

    @checked()
    def __init__(self, *, patience: Count) -> None:
        self.patience = patience

    def on_start(self, training: Training) -> None:
        every = training.settings.eval_every
        self.every = 1 if every == "auto" else every

    def on_step(self, training: Training) -> None:
        assert self.every is not None
        if training.is_last_step:  # which is evaluated later
            return
        best = int(training.best.get("step", 0))
        if training.settings.eval_every == "auto":
            since = sum(step > best for step in training.evaluated)
        else:
            since = training.step // self.every - best // self.every
        if since >= self.patience:
            training.terminal.line(
                f"stopped early: {self.patience} evaluations no better than that of step {best:,}"
            )
            training.stop()
