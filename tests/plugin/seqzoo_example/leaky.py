"""A model: a leaky average of each channel, with a learned rate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Share
from seqzoo.ops.linear_scan import linear_scan
from seqzoo.ops.tensors import float32_or_wider


class LeakyState(NamedTuple):
    h: Tensor  # (B, D), float32 or wider


class Leaky(nn.Module):
    """h_t = a h_{t-1} + (1 - a) x_t with a = sigmoid(rate); y = h W. The empty state is zero.

    Args:
        rate: where the rate of every channel begins.
    """

    @checked()
    def __init__(self, *, dim: Count, rate: Share) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((dim,), float(rate)))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: LeakyState | None = None) -> tuple[Tensor, LeakyState]:
        with torch.autocast(x.device.type, enabled=False):
            (wide,) = float32_or_wider(x)
            a = self.rate.to(wide.dtype).sigmoid().expand_as(wide)
            before = torch.zeros_like(wide[:, 0]) if state is None else state.h
            h = linear_scan(a, (1 - a) * wide, before)
        return self.out(h.to(x.dtype)).to(x.dtype), LeakyState(h[:, -1].clone())
