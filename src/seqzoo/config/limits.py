"""The rule of `seqzoo.training.settings`: a run has to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqzoo.errors import UserError

LIMITS = ("max_steps", "max_seconds", "max_epochs")


def a_limit_is_set(keys: Mapping[str, Any], where: str) -> None:
    """Refuse a training without an end."""
    if all(keys.get(limit) is None for limit in LIMITS):
        names = [f"{where or 'trainer.'}{limit}" for limit in LIMITS]
        raise UserError(f"trainer: no end: set {names[0]}, {names[1]} or {names[2]}")
