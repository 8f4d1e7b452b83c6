"""The keys of a configuration's section `trainer`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seqzoo.config.combinations import a_limit_is_set
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Device, Dtype, Flag, Positive, Seconds, Seed


@checked(a_limit_is_set)
@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How a model is trained, whatever the model and the task.

    Values and meanings are in ``configs/trainer/default.yaml``.
    """

    max_steps: Count | None
    max_seconds: Seconds | None
    max_epochs: Positive | None
    grad_clip: Positive | None
    grad_accumulation: Count
    average_checkpoints: Count | None
    device: Device
    threads: Count | None
    dtype: Dtype
    checkpointing: Flag
    compile: Flag
    seed: Seed
    log_every: Count
    eval_every: Literal["auto"] | Count | None
    checkpoint_every: Count | None
    sample_every: Count | None

    def progress(self, *, step: int, seconds: float, epochs: float) -> float:
        """The share of a run that is over, by the limit that is nearest; 1 or more at its end."""
        limits = (
            (step, self.max_steps),
            (seconds, self.max_seconds),
            (epochs, self.max_epochs),
        )
        return max(value / limit for value, limit in limits if limit is not None)
