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
