"""Small functions of tensors that several mixers use."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """x with its last dimension scaled to length 1: `F.normalize`, whose reduction is slow on a
    CPU."""
    return x * x.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()


def float32_or_wider(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32, or in float64 where they are: sums over time must not be rounded to
    16 bits."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on another device. It is copied to a GPU from pinned memory, so that the CPU does not wait
    for the copy, which would wait for all that the GPU was given before."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.contiguous().pin_memory()
    return x.to(device, non_blocking=device.type == "cuda")


def accumulator(x: Tensor, *shape: int) -> Tensor:
    """Zeros for sums of numbers like those of x, in float32 or wider."""
    return x.new_zeros(shape, dtype=torch.promote_types(x.dtype, torch.float32))
