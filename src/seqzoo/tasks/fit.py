"""What has to hold between the sections of a configuration. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqzoo.errors import UserError


def vocabularies_fit(config: Mapping[str, Any], where: str = "") -> None:
    """Refuse vocabularies of their own for source and target where one embedding serves both."""
    task, architecture = config["task"], config["architecture"]
    if task["joint_vocabulary"]:
        return
    if architecture["name"] == "decoder_only":
        raise UserError(
            "task.joint_vocabulary=false: one stack of layers reads both languages: give "
            "architecture=encoder_decoder, or task.joint_vocabulary=true"
        )
    if architecture.get("share_embeddings"):
        raise UserError(
            "task.joint_vocabulary=false: source and target have different tokens: give "
            "architecture.share_embeddings=false"
        )


def probe_can_be_made(config: Mapping[str, Any], where: str = "") -> None:
    """Refuse a probe that cannot be made of its keys, whose test is longer than the positions of
    the model, or that would never end."""
    from seqzoo.tasks import prepare  # which imports this module

    model, task, trainer = config["model"], config["task"], config["trainer"]
    needed = prepare(task).longest
    if model.get("position") in ("learned", "sinusoidal") and needed > model["max_len"]:
        raise UserError(
            f"task={task['name']} reads up to {needed} tokens, with task.test_lengths, and there "
            f"are positions for model.max_len={model['max_len']}: try model.max_len={needed} or "
            "model.position=rope"
        )
    if trainer.get("max_epochs") is not None and task["examples"] is None:
        raise UserError(
            "trainer.max_epochs: every batch is new, so there are no epochs: give "
            "trainer.max_steps, or a number of task.examples"
        )


def positions_suffice(config: Mapping[str, Any], length_key: str) -> None:
    """Refuse sequences longer than the positions a model has.

    Args:
        length_key: the task's key with the length of its longest sequences.
    """
    model, task = config["model"], config["task"]
    # With bridge=state the end of the source takes a position of its own.
    needed = task.get(length_key, 0) + (config["architecture"].get("bridge") == "state")
    if model.get("position") in ("learned", "sinusoidal") and needed > model["max_len"]:
        raise UserError(
            f"task.{length_key}={task[length_key]} is more than the positions of "
            f"model.max_len={model['max_len']}: try model.max_len={needed} or model.position=rope"
        )
