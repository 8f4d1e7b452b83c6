"""A run while it is trained: everything that hooks can see and do."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seqzoo.errors import UserError
from seqzoo.models.cost import flops_of_training, state_bytes
from seqzoo.models.language_model import LanguageModel, evaluating
from seqzoo.ops.native import library
from seqzoo.runs.directory import RunDirectory
from seqzoo.state import State
from seqzoo.training.device import keep_freed_memory, pick_device, pick_dtype
from seqzoo.training.forward import Forward
from seqzoo.training.loggers import Loggers, MetricsFile
from seqzoo.training.meter import Meter
from seqzoo.training.peak import measure_peak
from seqzoo.training.settings import TrainerSettings
from seqzoo.training.step import take_step
from seqzoo.training.tables import make, make_all
from seqzoo.training.terminal import Terminal

if TYPE_CHECKING:
    from seqzoo.tasks.task import Task


WORTH_A_PEAK, PEAK_SECONDS = 20.0, 0.3  # seconds: of a run, and of measuring the peak after it


class Training:
    """A run while it is trained.

    Attributes:
        model, task, optimizer, schedule, directory, loggers, settings: what the run is made of.
        forward: the model as the task's objective calls it.
        device, dtype: where and how precisely it is computed.
        step, tokens: how many there were.
        batches: micro-batches there were: the number of the task's next one.
        state: carried from the last batch to the next; None where none is.
        lr: learning rate of the last step.
        grad_norm: of the last step, before clipping; on the device.
        meter: loss and speed since the last line of the log.
        metrics: of the last evaluation.
        evaluated: the steps of this sitting's evaluations.
        shortened: whether evaluations on the way read a part of the data.
        best: the `value` of the task's first metric at its best, and its `step`.
        is_last_step: whether a limit was reached by the last step.
        status: `running`, then `finished` or `interrupted`.
        interrupted: whether to stop as after a signal: nothing is measured any more.
        summary: what summary.json will hold; it is filled at the end.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: Task,
        config: Mapping[str, Any],
        directory: RunDirectory,
        *,
        quiet: bool,
    ) -> None:
        settings = self.settings = TrainerSettings(**config["trainer"])
        self.model, self.task, self.config, self.directory = model, task, config, directory
        self.device = pick_device(settings.device)
        self.dtype = pick_dtype(settings.dtype, self.device)
        keep_freed_memory()
        model.to(self.device)
        task.setup(model)
        self.optimizer = make("optim", config["optim"], model)
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        self.schedule = make("schedule", config["schedule"])
        self.forward = Forward(
            model,
            self.device,
            self.dtype,
            checkpointing=settings.checkpointing,
            compile=settings.compile,
        )
        sections = config.get("logger", {"tensorboard": {}})
        self.loggers = Loggers([MetricsFile(), *make_all("logger", sections)])
        self.terminal = Terminal(task.metrics, quiet=quiet)
        self.meter = Meter(self.device, step_seconds=0.0)
        self.step = self.batches = self.tokens = 0
        self.state: State = None
        self.lr, self.grad_norm = 0.0, torch.zeros(())
        self.metrics: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.evaluated: list[int] = []
        self.shortened = False
        self.status, self.interrupted, self.is_last_step = "running", False, False
        self.summary: dict[str, Any] = {}
        self.digests: dict[str, str] = {}
        self._stopping = False
        self._next_batches: list[Any] = []  # prepared while the last step was computed
        self._saved_at = -1
        self._earlier = 0.0  # seconds of earlier sittings
        self._begun = time.perf_counter()

    # ---- where the run is

    @property
    def seconds(self) -> float:
        """Since the first step, evaluations and samples included; without the time between two
        sittings."""
        return time.perf_counter() - self._begun

    @property
    def progress(self) -> float:
        """The share of the run that is over, by the nearest limit."""
        epochs = self.task.epochs(self.batches)
        return self.settings.progress(step=self.step, seconds=self.seconds, epochs=epochs)

    @property
    def ends_by_the_clock(self) -> bool:
        """Whether `max_seconds` is the nearest limit."""
        limit = self.settings.max_seconds
        return limit is not None and self.progress <= self.seconds / limit

    @property
    def is_over(self) -> bool:
        return self.interrupted or self._stopping or self.progress >= 1

    def position(self) -> dict[str, float]:
        """What every line of metrics.jsonl begins with."""
        return {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}

    def stop(self) -> None:
        """End the run after this step, as if a limit was reached."""
        self._stopping = True

    # ---- the steps

    def take_step(self) -> None:
        progress = self.progress
        factor = self.schedule(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.lr = self.config["optim"]["lr"] * factor
        with self.meter.timed():
            batches = self._next_batches or self._prepared_batches()
            result = take_step(
                self.forward,
                self.task.objective,
                self.optimizer,
                self.model.parameters(),
                batches,
                self.state,
                device=self.device,
                progress=progress,
                carries=self.task.carries,
                grad_clip=self.settings.grad_clip,
            )
            self.batches += len(batches)
            self._next_batches = []
            if self.device.type == "cuda":  # which is still computing the step
                self._next_batches = self._prepared_batches()
        self.meter.add(result)
        self.state, self.grad_norm = result.state, result.grad_norm
        self.step += 1
        self.tokens += result.tokens
        self.is_last_step = self.progress >= 1

    def _prepared_batches(self) -> list[Any]:
        """The micro-batches of the next step, on the device."""
        n = self.settings.grad_accumulation
        return [self.task.batch(self.batches + i).to(self.device) for i in range(n)]

    def mean_loss(self) -> float:
        """Of the steps since the last line of the log; right after a line, of the steps in it. This
        waits for the device.

        Raises:
            FloatingPointError: it is not finite.
        """
        loss = self.meter.loss()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.step}: try a lower optim.lr "
                f"({self.config['optim']['lr']:g}), more schedule.warmup_steps, or "
                "trainer.dtype=float32"
            )
        return loss

    # ---- evaluation

    @property
    def best_metric(self) -> str:
        """The metric that chooses the best checkpoint."""
        return f"val/{self.task.metrics[0].name}"

    def better(self, value: float, other: float) -> bool:
        """Whether a value of that metric is better than another one."""
        return value > other if self.task.metrics[0].higher_is_better else value < other

    def evaluate(self, *, quick: bool = False, at: int | None = None) -> dict[str, float]:
        """Metrics of the model as it is now: on the validation split; if not `quick`, on all.

        Args:
            at: the step whose weights the model has, if not the last one's: then nothing is logged.
        """
        position = self.position()
        metrics: dict[str, float] = {}
        self.model.eval()
        with self.terminal.busy("evaluating"), self.forward.uncompiled():
            for split in ("val",) if quick else self.task.splits():
                metrics |= self.task.evaluate(self.model, split, quick=quick)
        self.model.train()
        seconds: float | None = None
        if at is None:
            at, seconds, self.metrics = self.step, position["seconds"], metrics
            self.evaluated.append(self.step)
            self.loggers.scalars(metrics, position)
        self.terminal.evaluation(at, seconds, metrics)
        return metrics

    def shorten_evaluations(self) -> None:
        """Have evaluations on the way read a part of the data, where all of it is much."""
        shorten: Callable[[], bool] | None = getattr(self.task, "shorten", None)
        self.shortened = shorten is not None and shorten()

    # ---- checkpoints

    def save(self) -> None:
        """Save the run as it is now, unless this step is saved already; the first checkpoint is the
        best so far."""
        if self._saved_at == self.step:
            return
        self.mean_loss()
        checkpoints = self.directory.checkpoints
        progress = {
            "step": self.step,
            "batches": self.batches,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "step_seconds": self.meter.step_seconds,
            "data_sha256": self.task.data_sha256,
        }
        target = checkpoints.save(
            self.step,
            model=self.model,
            optimizer=self.optimizer,
            state=self.state,
            progress=progress,
        )
        checkpoints.point("last", target)
        if checkpoints.resolve("best") is None:
            checkpoints.point("best", target)
        checkpoints.prune(keep=self.recent_checkpoints())
        self._saved_at = self.step

    def recent_checkpoints(self) -> list[Path]:
        """Those whose mean is tried at the end: the last one, and those before it that were due,
        not those of a new best."""
        settings = self.settings
        every = settings.checkpoint_every
        return self.directory.checkpoints.recent(settings.average_checkpoints or 0, every)

    def load(self) -> None:
        """Go on from the `last` checkpoint.

        Raises:
            UserError: it is damaged, of another model, or was trained on other data.
        """
        checkpoints = self.directory.checkpoints
        self.state, done = checkpoints.load(
            "last", model=self.model, optimizer=self.optimizer, template=self.model.example_state
        )
        if done["data_sha256"] != self.task.data_sha256:
            raise UserError(
                f"{self.directory.path}: trained on other data (sha256 "
                f"{done['data_sha256'][:12]}, now {self.task.data_sha256[:12]}): put the data "
                "back, or start a new run"
            )
        self.step, self.batches, self.tokens = done["step"], done["batches"], done["tokens"]
        self.meter.step_seconds = done["step_seconds"]
        self.best, self._saved_at = checkpoints.best(), self.step
        self._earlier = done["seconds"]

    # ---- beginning and end

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Around the whole training: opens the run's files and loggers, and closes them with the
        summary; where the training fails, with what is known."""
        model, directory = self.model, self.directory
        digests = {"data_sha256": self.task.data_sha256}
        if (val := getattr(self.task, "val_sha256", None)) is not None:
            digests["val_sha256"] = val
        self.digests = directory.describe_model(
            self.config, self.task.sizes(), self.task.tokenizers(), digests
        )
        shown = (self.best_metric, "train/loss", "bench/train_tokens_per_second")
        try:
            self.loggers.start(directory, self.config, step=self.step, metrics=shown)
            self.terminal.line(
                f"{self.config['model']['name']}, {model.n_parameters():,} parameters, "
                f"on {self.device.type} in {self.dtype}"
            )
            self.terminal.line(f"{self.task.name}: {self.task.note}")
            self.terminal.line(f"run directory: {directory.path}")
            model.train()
            if self.device.type == "cpu":
                library()  # the kernels, whose building is no part of the training's time
            self._begun = time.perf_counter() - self._earlier
            yield
            directory.save_model(model)
            directory.write_summary(self.summary)
        except BaseException as error:
            self.summary["status"] = "failed"
            if isinstance(error, KeyboardInterrupt):
                self.summary["status"] = "interrupted"
                reached = {"steps": self.step, "tokens": self.tokens}
                facts = {**directory.summary, **reached}
                directory.mark_failed("stopped by a second signal", "interrupted", facts)
            raise
        finally:
            self.terminal.close()
            self.loggers.close(self.summary)

    def _flops(self, train_seconds: float) -> dict[str, float]:
        """FLOPs a token by the definition, FLOP/s in training steps, and their share of the
        machine's peak. {} for a run too short to count and to measure, which take a second."""
        if train_seconds < WORTH_A_PEAK or self.interrupted:
            return {}
        with evaluating(self.model), self.forward.uncompiled():
            per_token = flops_of_training(self.model, self.task.seq_len)
        rate = per_token * self.tokens / max(self.meter.step_seconds, 1e-9)
        peak = measure_peak(self.device, self.dtype, seconds=PEAK_SECONDS).flops
        return {
            "flops_per_token": per_token,
            "flops_per_second": round(rate),
            "peak_flops": round(peak),
            "peak_share": round(rate / peak, 4),
        }

    def _state_bytes(self) -> dict[str, int]:
        """Bytes of the state in float32 after one sequence of the task's mean length. {} of a model
        that keeps none."""
        if self.model.reads_both_ways:
            return {}
        exact = torch.autocast(self.device.type, enabled=False)  # as a prepared step keeps it
        with evaluating(self.model), self.forward.uncompiled(), exact:
            return {"state_bytes": state_bytes(self.model, self.task.seq_len)}

    def end(self) -> None:
        """Save the last step, and note how the run ended."""
        self.meter.settle()
        train_seconds = self.seconds
        self.save()
        self.status = "interrupted" if self.interrupted else "finished"
        self.summary = {
            "model": self.config["model"]["name"],
            "task": self.task.name,
            "parameters": self.model.n_parameters(),
            "steps": self.step,
            "tokens": self.tokens,
            "epochs": round(self.task.epochs(self.batches), 4),
            "train_seconds": round(train_seconds, 3),
            "tokens_per_second": round(self.tokens / max(self.meter.step_seconds, 1e-9), 1),
            **self._flops(train_seconds),
            **self._state_bytes(),
            "seq_len": self.task.seq_len,
            "device": self.device.type,
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "seed": self.settings.seed,
            "data": self.task.note,
            **self.digests,
            "versions": {name: version(name) for name in ("seqzoo", "torch", "numpy")}
            | {"python": platform.python_version()},
            "status": self.status,
        }
