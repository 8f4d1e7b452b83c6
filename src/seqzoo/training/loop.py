"""The training loop, for every model and every task, in the order in which it runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from seqzoo.models.language_model import LanguageModel
from seqzoo.runs.directory import RunDirectory
from seqzoo.training.device import cpu_threads, float32_products
from seqzoo.training.export import export
from seqzoo.training.hooks import Hook, run_hooks
from seqzoo.training.load import FollowLoad, WarnIfSlow
from seqzoo.training.tables import make_all
from seqzoo.training.training import Training

if TYPE_CHECKING:
    from seqzoo.tasks.task import Task


def train(
    model: LanguageModel,
    task: Task,
    config: Mapping[str, Any],
    directory: RunDirectory,
    *,
    hooks: Sequence[Hook] = (),
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train until the first limit, and leave a run directory behind.

    Args:
        config: the whole configuration, with the sections `model`, `architecture`, `task`, `optim`,
            `schedule`, `trainer`, `logger` and `hook` (a section for each logger and hook by its
            name; without any logger it is TensorBoard's).
        directory: of the run; it has its config.yaml already.
        hooks: called after those of every run.
        resume: go on from the `last` checkpoint in the directory.
        quiet: print nothing.

    Returns:
        The summary, as in summary.json.

    Raises:
        UserError: no limit is set, or a device that this machine lacks.
        FloatingPointError: the loss is not finite.
    """
    training = Training(model, task, config, directory, quiet=quiet)
    if resume:
        training.load()
    settings = training.settings
    called = [
        *([FollowLoad()] if settings.threads is None else []),
        WarnIfSlow(settings.log_every),  # before the log, which begins a new window
        *run_hooks(settings),
        *make_all("hook", config.get("hook") or {}),
        *hooks,
    ]
    with (
        cpu_threads(settings.threads),
        float32_products(training.device, training.dtype),
        _stopped_by_signals(training),
        training.logging(),
    ):
        for hook in called:
            hook.on_start(training)
        while not training.is_over:
            training.take_step()
            due = [hook for hook in called if hook.is_due(training.step)]
            if due:
                training.meter.settle()
            training.terminal.step(training)
            for hook in due:
                hook.on_step(training)
        training.end()
        for hook in called:
            hook.on_end(training)
        training.summary |= export(training)
    return training.summary


@contextmanager
def _stopped_by_signals(training: Training) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM ends the run in order after the step it is in, and a
    second one at once. Python delivers signals to the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: object) -> None:
        if training.interrupted:
            raise KeyboardInterrupt
        training.interrupted = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
