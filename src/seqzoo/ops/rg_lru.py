"""The real-gated linear recurrent unit (De et al. 2024, arXiv 2402.19427, eq. 1 to 4), from its
gates before the sigmoid.

B batch, T time, E channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.linear_scan import linear_scan
from seqzoo.ops.registry import choose

POWER = 8.0  # c of eq. 3
LEAST = 1e-12  # of 1 - a^2, whose square root has no gradient at 0


def rg_lru(x: Tensor, r: Tensor, i: Tensor, decay: Tensor, h: Tensor) -> Tensor:
    """All states h_1 to h_T.

        a_t = e^(-8 softplus(decay) sigmoid(r_t))
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(i_t) x_t

    Args:
        x, r, i: (B, T, E), in any type; decay: (E,).
        h: (B, E), the state before the first token; float32 or wider.

    Returns:
        (B, T, E), in the type of h.
    """
    states: Tensor = choose("rg_lru", h, x.shape[1])(x, r, i, decay, h)
    return states


def naive(x: Tensor, r: Tensor, i: Tensor, decay: Tensor, h: Tensor) -> Tensor:
    """The definition, in the type of h."""
    x, r, i, decay = (t.to(h.dtype) for t in (x, r, i, decay))
    log_a = -POWER * F.softplus(decay) * r.sigmoid()
    scale = (-torch.expm1(2 * log_a)).clamp(min=LEAST).sqrt()
    return linear_scan(log_a.exp(), scale * i.sigmoid() * x, h)
