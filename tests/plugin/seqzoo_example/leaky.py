"""A leaky sum: h_t = a h_{t-1} + (1 - a) x_t with a learned rate a for each channel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Share


class LeakyState(NamedTuple):
    h: Tensor  # (B, D)


class Leaky(nn.Module):
    @checked()
    def __init__(self, *, dim: Count, leak: Share) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((dim,), leak))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: LeakyState | None = None) -> tuple[Tensor, LeakyState]:
        h = torch.zeros_like(x[:, 0]) if state is None else state.h
        outputs = []
        for x_t in x.unbind(1):
            h = torch.lerp(x_t, h, self.rate.sigmoid())
            outputs.append(h)
        return self.out(torch.stack(outputs, 1)), LeakyState(h)
