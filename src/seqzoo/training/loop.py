"""The training loop, for every model and every task, in the order in which it runs."""

from __future__ import annotations

import json
import math
import platform
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from seqzoo import state as states
from seqzoo.config import flat
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.runs import checkpoint
from seqzoo.tasks.task import IGNORE, Batch, Task
from seqzoo.training.device import keep_freed_memory, pick_device, pick_dtype
from seqzoo.training.log import Log, Progress
from seqzoo.training.optim import adamw, schedule


def train(
    model: LanguageModel,
    task: Task,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    config: Mapping[str, Any],
    resume: bool,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train until the first limit, and leave a run directory behind.

    Args:
        settings: the `trainer` section of the configuration.
        folder: the run directory, which holds config.yaml already.
        config: the whole configuration, for the logs.
        resume: go on from the `last` checkpoint in `folder`.

    Returns:
        The summary, as in summary.json.

    Raises:
        UserError: no limit is set, or a device that is not there.
        FloatingPointError: the loss stopped being a number.
    """
    limits = [settings[key] for key in ("max_steps", "max_seconds", "max_epochs")]
    if all(limit is None for limit in limits):
        raise UserError(
            "trainer: no end: set trainer.max_steps, trainer.max_seconds or trainer.max_epochs"
        )
    device = pick_device(settings["device"])
    dtype = pick_dtype(settings["dtype"], device)
    keep_freed_memory()
    model.to(device)
    task.setup(model)
    optimizer = adamw(
        model,
        lr=settings["lr"],
        betas=(settings["beta1"], settings["beta2"]),
        weight_decay=settings["weight_decay"],
    )
    checkpoints = folder / "checkpoints"
    carried: states.State = None
    done = {
        "step": 0,
        "batches": 0,
        "tokens": 0,
        "seconds": 0.0,
        "step_seconds": 0.0,
        "data_sha256": task.data_sha256,
    }
    best: dict[str, float] = {}  # the best value of the task's metric, and its step
    if resume:
        carried, done = checkpoint.load(
            (checkpoints / "last").resolve(),
            model=model,
            optimizer=optimizer,
            template=model.example_state(),
        )
        best = checkpoint.read_best(checkpoints)
        if done["data_sha256"] != task.data_sha256:
            raise UserError(
                f"{folder}: trained on other data (sha256 {done['data_sha256'][:12]}, now "
                f"{task.data_sha256[:12]}): put the data back, or start a new run"
            )
    if settings["compile"]:
        for layer in model.blocks:
            layer.compile()

    describe(folder, config["model"], task.tokenizer, task.source_tokenizer, model.vocab_size)
    shown = (task.best, "train/loss", "bench/train_tokens_per_second")
    log = Log(folder, step=done["step"], hyperparameters=flat(config), metrics=shown)
    show = Progress(quiet=quiet)
    show.say(
        f"{config['model']['name']}, {model.n_parameters():,} parameters, "
        f"on {device.type} in {dtype}"
    )
    show.say(f"{task.name}: {task.note}")
    show.say(f"run directory: {folder}")

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def eager() -> Any:
        """Evaluations and samples meet lengths and states that no block was compiled for."""
        return torch.compiler.set_stance("force_eager" if settings["compile"] else "default")

    begun = time.perf_counter() - done["seconds"]

    def fraction() -> float:
        """How much of the run is over, by whichever limit is nearest."""
        now = (done["step"], time.perf_counter() - begun, task.epochs(done["batches"]))
        return max(
            value / limit for value, limit in zip(now, limits, strict=True) if limit is not None
        )

    def evaluate(*, quick: bool, at: int | None = None) -> dict[str, float | str]:
        """Measure the model now, and log it unless it is one of an earlier step, `at`. Thorough
        or quick, the validation metrics; thorough, those of the test part too."""
        where = position()
        model.eval()
        metrics: dict[str, float | str] = {}
        with autocast(), eager():
            for split in ("val",) if quick else task.splits():
                metrics |= task.evaluate(model, split, quick=quick)
        model.train()
        if at is None:
            log.scalars(metrics, **where)
        shown = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if isinstance(v, float))
        step = done["step"] if at is None else at
        show.say(f"step {step:>6,}  {where['seconds']:>5.0f} s  {shown}")
        return metrics

    def position() -> dict[str, float]:
        """Where the run is: what every line of the logs begins with."""
        seconds = round(time.perf_counter() - begun, 3)
        return {"step": done["step"], "tokens": done["tokens"], "seconds": seconds}

    saved_at = done["step"] if resume else -1
    written_at = -1

    def recent() -> list[Path]:
        """The checkpoints whose mean is tried at the end: the last one and those before it that
        were due, not those of a new best."""
        every = settings["checkpoint_every"]
        due = [
            path
            for path in sorted(checkpoints.glob("step-*"))
            if every and _step(path) % every == 0 or path == (checkpoints / "last").resolve()
        ]
        return due[-settings["average_checkpoints"] :] if settings["average_checkpoints"] else []

    def save() -> None:
        """Keep the run as it is now, once a step; the first checkpoint is the best so far."""
        nonlocal saved_at
        if saved_at == done["step"]:
            return
        done["seconds"] = time.perf_counter() - begun
        target = checkpoints / f"step-{done['step']:08d}"
        checkpoint.save(target, model=model, optimizer=optimizer, state=carried, progress=done)
        checkpoint.point(checkpoints, "last", target)
        if not (checkpoints / "best").exists():
            checkpoint.point(checkpoints, "best", target)
        checkpoint.prune(checkpoints, keep=recent())
        saved_at = done["step"]

    def judge(metrics: Mapping[str, float | str]) -> None:
        """Keep the model if it is the best so far, by the task's own metric."""
        value = float(metrics[task.best])
        if not math.isfinite(value) or value >= best.get("value", math.inf):
            return
        best.update(value=value, step=done["step"])
        save()
        checkpoint.point(checkpoints, "best", checkpoints / f"step-{done['step']:08d}", best)
        checkpoint.prune(checkpoints, keep=recent())

    def write() -> None:
        nonlocal written_at
        if written_at == done["step"]:
            return
        written_at = done["step"]
        with autocast(), eager():
            text = task.sample(model)
            figures = task.figures(model)
        log.sample(text, done["step"])
        log.figures(figures, done["step"])
        show.say("\n".join(f"    | {line}" for line in text.splitlines()))

    def due(every: int | None) -> bool:
        return every is not None and done["step"] % every == 0

    def averaged(paths: list[Path], to_beat: float) -> dict[str, float | str]:
        """The metrics of the mean of checkpoints, which the model then has; of one that is no
        better than the best, only the metric that says so, and the model is as it was."""
        show.say(f"the mean of {len(paths)} checkpoints, from step {_step(paths[0]):,} on:")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        checkpoint.load_mean(paths, model)
        at = _step(paths[-1])
        metrics = evaluate(quick=True, at=at)
        if float(metrics[task.best]) >= to_beat:
            model.load_state_dict(before)
            return {task.best: metrics[task.best]}
        return evaluate(quick=False, at=at) if task.quick_is_less else metrics

    measured: dict[str, float | str] = {}
    measured_at = -1
    window = {
        "loss": 0.0,
        "steps": 0,
        "tokens": 0,
        "seconds": 0.0,
    }  # since the last line of the log
    model.train()
    with _interruptible() as interrupted:
        while (progress := fraction()) < 1 and not interrupted:
            started = time.perf_counter()
            factor = schedule(
                done["step"],
                progress,
                warmup_steps=settings["warmup_steps"],
                lr_end=settings["lr_end"],
            )
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor

            batches = [
                task.batch(done["batches"] + i) for i in range(settings["grad_accumulation"])
            ]
            targets = sum(int((batch.targets != IGNORE).sum()) for batch in batches)
            step_loss = torch.zeros((), device=device)
            for batch in batches:
                batch = batch.to(device)
                before = None if batch.fresh else carried
                if share := settings["scheduled_sampling"] * progress:
                    with autocast():  # apart: it remembers weights that were cast without gradient
                        batch = _own_words(model, batch, before, share)
                with autocast():
                    logits, carried = model(batch.inputs, before, *batch.source)
                loss = F.cross_entropy(
                    logits.flatten(0, 1).float(),
                    batch.targets.flatten(),
                    ignore_index=IGNORE,
                    reduction="sum",
                    label_smoothing=settings["label_smoothing"],
                )
                (loss / targets).backward()
                carried = states.detach(carried) if task.carries else None
                step_loss += loss.detach() / targets
            clip = math.inf if settings["grad_clip"] is None else settings["grad_clip"]
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            done["step"] += 1
            done["batches"] += len(batches)
            step_tokens = sum(batch.n_tokens for batch in batches)
            done["tokens"] += step_tokens
            loss_now = float(step_loss)  # waits for the device: the step is timed whole
            if not math.isfinite(loss_now):
                log.close()
                raise FloatingPointError(
                    f"the loss is {loss_now} at step {done['step']}: try a lower trainer.lr "
                    f"({settings['lr']:g}), more trainer.warmup_steps, or trainer.dtype=float32"
                )
            window["loss"] += loss_now
            took = time.perf_counter() - started
            done["step_seconds"] += took
            window["steps"] += 1
            window["tokens"] += step_tokens
            window["seconds"] += took
            speed = window["tokens"] / window["seconds"]
            mean = window["loss"] / window["steps"]
            show.update(fraction=fraction(), step=done["step"], loss=mean, tokens_per_second=speed)

            if due(settings["log_every"]):
                log.scalars(
                    {
                        "train/loss": mean,
                        "train/lr": settings["lr"] * factor,
                        "train/grad_norm": float(norm),
                        "train/tokens_per_second": speed,
                    },
                    **position(),
                )
                window = dict.fromkeys(window, 0.0)
            if fraction() < 1:  # what is due at the end is done once, below
                if due(settings["eval_every"]):
                    judge(measured := evaluate(quick=True))
                    measured_at = done["step"]
                if due(settings["sample_every"]):
                    write()
                if due(settings["checkpoint_every"]):
                    save()

        train_seconds = time.perf_counter() - begun
        save()
        status = "interrupted" if interrupted else "finished"
        final: dict[str, dict[str, float | str]] = {}
        if status == "finished":
            enough = measured_at == done["step"] and not task.quick_is_less
            final["last"] = measured if enough else evaluate(quick=False)
            judge(final["last"])
            write()
        show.close()
    summary = {
        "model": config["model"]["name"],
        "task": task.name,
        "parameters": model.n_parameters(),
        "steps": done["step"],
        "tokens": done["tokens"],
        "epochs": round(task.epochs(done["batches"]), 4),
        "train_seconds": round(train_seconds, 3),
        "tokens_per_second": round(done["tokens"] / max(done["step_seconds"], 1e-9), 1),
        "seq_len": task.seq_len,
        "device": device.type,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "seed": settings["seed"],
        "data": task.note,
        "data_sha256": task.data_sha256,
        "versions": {name: version(name) for name in ("seqzoo", "torch", "numpy")}
        | {"python": platform.python_version()},
        "status": status,
    }
    chosen = (checkpoints / "best").resolve()
    if chosen != (checkpoints / "last").resolve():
        checkpoint.load_weights(chosen / "model.safetensors", model)
        if status == "finished":
            show.say(f"the best checkpoint, of step {best['step']:,}:")
            final["best"] = evaluate(quick=False, at=int(best["step"]))
    if status == "finished":
        final.setdefault("best", final["last"])
        summary["best_step"] = best.get("step", done["step"])
        summary["exported"] = "best"
        if len(paths := recent()) > 1:
            final["average"] = averaged(paths, float(final["best"][task.best]))
            better = float(final["average"][task.best]) < float(final["best"][task.best])
            summary["exported"] = "average" if better else "best"
            verdict = "below that of the best: exported" if better else "no lower than the best's"
            show.say(f"its {task.best} is {verdict}")
        elif settings["average_checkpoints"]:
            show.say("no mean of checkpoints, as there is one: lower trainer.checkpoint_every")
        summary |= {**final[summary["exported"]], **final}
    log.speed(task.seq_len, summary["tokens_per_second"])
    log.close()
    checkpoint.save_model(model, str(folder / "model" / "model.safetensors"))
    checkpoint.write(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def describe(
    folder: Path,
    keys: Mapping[str, Any],
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    vocab_size: int,
) -> None:
    """Begin a run's model/, what it takes to load the model elsewhere, with all but the weights.

    The source's tokenizer is written only where it is another.
    """
    out = folder / "model"
    out.mkdir(exist_ok=True)
    sizes = {"vocab_size": vocab_size}
    if source_tokenizer is not tokenizer:
        sizes["source_vocab_size"] = source_tokenizer.vocab_size
        source_tokenizer.save(out / "source_tokenizer.json")
    (out / "config.json").write_text(json.dumps({**keys, **sizes}, indent=1) + "\n")
    tokenizer.save(out / "tokenizer.json")


@torch.no_grad()
def _own_words(model: LanguageModel, batch: Batch, state: states.State, share: float) -> Batch:
    """The batch with a share of the tokens that were to be said replaced by what the model says
    there: scheduled sampling (Bengio et al. 2015, arXiv 1506.03099) in two passes (Mihaylova and
    Martins 2019, arXiv 1906.07651), which keeps training parallel."""
    said = model(batch.inputs, state, *batch.source)[0][:, :-1].argmax(-1)
    replaced = (torch.rand(said.shape) < share).to(said.device) & (batch.targets[:, :-1] != IGNORE)
    rest = torch.where(replaced, said, batch.inputs[:, 1:])
    return batch._replace(inputs=torch.cat((batch.inputs[:, :1], rest), 1))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that becomes true at the first SIGINT or SIGTERM: the step is finished, then the run
    stops in order. A second one stops it at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
