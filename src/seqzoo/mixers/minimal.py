"""minGRU and minLSTM (Feng et al. 2024, arXiv 2410.01201): gates that do not depend on the state,
so that the recurrence is linear.

B batch, T time, D width, E = expand D numbers of state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.linear_scan import linear_scan
from seqzoo.ops.tensors import float32_or_wider


class Hidden(NamedTuple):
    """The state, in float32 or wider."""

    h: Tensor  # (B, E)


class MinGRU(nn.Module):
    """h_t = (1 - z_t) h_{t-1} + z_t g(x_t W_h), z = sigmoid(x W_z) (section 3.1; g of appendix B).

    The empty state is zero (the paper's parallel listing applies g to it, which makes 1/2 of zero);
    y = h W_out, also where E = D.

    Args:
        dim: width D.
        expand: E / D.
    """

    @checked()
    def __init__(self, *, dim: Count, expand: Count) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 2 * expand * dim)
        self.out = nn.Linear(expand * dim, dim)

    def forward(self, x: Tensor, state: Hidden | None = None) -> tuple[Tensor, Hidden]:
        z, candidate = self.project(x).chunk(2, -1)
        with torch.autocast(x.device.type, enabled=False):
            z, candidate = float32_or_wider(z, candidate)
            z = z.sigmoid()
            h, after = _recur(1 - z, z * positive(candidate), state)
        return self.out(h.to(x.dtype)).to(x.dtype), after


class MinLSTM(nn.Module):
    """h_t = f'_t h_{t-1} + i'_t g(x_t W_h), where f' = f / (f + i), i' = i / (f + i) of two sigmoid
    gates (section 3.2; g of appendix B).

    The empty state is zero; y = h W_out, also where E = D.

    Args:
        dim: width D.
        expand: E / D.
    """

    @checked()
    def __init__(self, *, dim: Count, expand: Count) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 3 * expand * dim)
        self.out = nn.Linear(expand * dim, dim)

    def forward(self, x: Tensor, state: Hidden | None = None) -> tuple[Tensor, Hidden]:
        f, i, candidate = self.project(x).chunk(3, -1)
        with torch.autocast(x.device.type, enabled=False):
            f, i, candidate = float32_or_wider(f, i, candidate)
            keep = (F.logsigmoid(f) - F.logsigmoid(i)).sigmoid()  # f / (f + i)
            h, after = _recur(keep, (1 - keep) * positive(candidate), state)
        return self.out(h.to(x.dtype)).to(x.dtype), after


def positive(x: Tensor) -> Tensor:
    """g of appendix B: x + 1/2 where x >= 0, else sigmoid(x)."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


def _recur(a: Tensor, b: Tensor, state: Hidden | None) -> tuple[Tensor, Hidden]:
    h = linear_scan(a, b, state.h if state else torch.zeros_like(b[:, 0]))
    return h, Hidden(h[:, -1].clone())  # a view would keep the whole chunk in memory
