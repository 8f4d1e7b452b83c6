"""The optimiser's parameter groups, and how the learning rate moves."""

from __future__ import annotations

import math

import torch
from torch import nn


def adamw(
    model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with matrices decayed; biases, norms, mixes and embeddings
    not.

    A parameter may ask for a multiple of the learning rate by an attribute `lr_scale` (RWKV's
    decays do). Every group carries `peak_lr`, which the schedule scales.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        embedding = id(parameter) in embeddings or getattr(parameter, "no_decay", False)
        matrix = parameter.squeeze().ndim >= 2 and not embedding
        key = (weight_decay if matrix else 0.0, getattr(parameter, "lr_scale", 1.0))
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr": lr * scale, "peak_lr": lr * scale}
            for (decay, scale), parameters in groups.items()
        ],
        betas=betas,
        fused=True,
    )


def schedule(step: int, progress: float, *, warmup_steps: int, lr_end: float) -> float:
    """Factor on the peak learning rate: linear warm-up over steps, cosine from 1 to `lr_end` over
    the run.

    Args:
        step: counted from 0.
        progress: how much of the run is over, 0 to 1, by whichever limit is nearest.
    """
    cosine = lr_end + (1 - lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * cosine
