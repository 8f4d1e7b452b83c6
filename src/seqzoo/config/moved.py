"""Keys that have moved: a request with an old one is refused with its new place, and the
configuration of an older run is read as if it had been written today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqzoo.errors import UserError

MOVED = {
    "trainer.lr": "optim.lr",
    "trainer.weight_decay": "optim.weight_decay",
    "trainer.beta1": "optim.betas",
    "trainer.beta2": "optim.betas",
    "trainer.lr_end": "schedule.lr_end",
    "trainer.warmup_steps": "schedule.warmup_steps",
    "trainer.label_smoothing": "task.label_smoothing",
    "trainer.scheduled_sampling": "task.scheduled_sampling",
    "head": "architecture",
    "model.head": "architecture",
    "model.bridge": "architecture.bridge",
    "model.attention": "architecture.attention",
    "model.source_heads": "architecture.source_heads",
    "model.bidirectional": "architecture.bidirectional",
    "model.encoder_layers": "architecture.encoder_layers",
    "model.share_embeddings": "architecture.share_embeddings",
}


def refuse_moved(key: str, value: str) -> None:
    """Refuse a key that stands elsewhere now.

    Raises:
        UserError: its new place.
    """
    if new := MOVED.get(key):
        example = "[0.9,0.99]" if new == "optim.betas" else value
        raise UserError(f"{key}={value}: {key} is now {new}: give {new}={example}")


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration in today's sections, whichever release wrote it.

    A run made before `schedule` existed warmed up by steps alone, so it goes on like that.
    """
    if "optim" in config:
        return dict(config)
    model, task, trainer = (dict(config[section]) for section in ("model", "task", "trainer"))
    name = model.pop("head", "decoder_only")
    parts = [key.partition(".")[2] for key in MOVED if key.startswith("model.")]
    architecture = {key: model.pop(key) for key in parts if key in model}
    betas = [trainer.pop("beta1", 0.9), trainer.pop("beta2", 0.99)]
    optim = {"name": "adamw", "lr": trainer.pop("lr", 0.003)}
    optim |= {"weight_decay": trainer.pop("weight_decay", 0.1), "betas": betas}
    schedule = {"name": "cosine", "warmup_steps": trainer.pop("warmup_steps", 100)}
    schedule |= {"warmup_share": 1.0, "lr_end": trainer.pop("lr_end", 0.05)}
    for key in ("label_smoothing", "scheduled_sampling"):
        task[key] = trainer.pop(key, 0.0)
    rest = {k: v for k, v in config.items() if k not in ("model", "task", "trainer")}
    return {
        "model": model,
        "architecture": {"name": name, **(architecture if name != "decoder_only" else {})},
        "task": task,
        "optim": optim,
        "schedule": schedule,
        "trainer": trainer,
        "logger": {"tensorboard": {}},
        "hook": {},
        **rest,
    }
