"""How fast this machine multiplies matrices: what the speed of a model is a share of."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch

from seqzoo.training.device import synchronise


class Peak(NamedTuple):
    """FLOP/s of large matrix products, and how they were measured."""

    flops: float
    measured_by: str


def measure_peak(device: torch.device, dtype: str, *, seconds: float) -> Peak:
    """Multiply large matrices for some seconds, at least three times after the first.

    Args:
        dtype: that of a run, such as `float32` or `bfloat16`.
    """
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        a @ b
        synchronise(device)
        times.append(time.perf_counter() - start)
    taken = times[1:]
    what = f"{size} x {size} matrix product, median of {len(taken)}"
    return Peak(2 * size**3 / statistics.median(taken), what)
