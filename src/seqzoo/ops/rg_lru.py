"""The real-gated linear recurrent unit (De et al. 2024, arXiv 2402.19427, eq. 1 to 4), from its
gates before the sigmoid.

B batch, T time, E channels in H blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.linear_scan import linear_scan
from seqzoo.ops.registry import choose

POWER = 8.0  # c of eq. 3
LEAST = 1e-12  # of 1 - a^2, whose square root has no gradient at 0


def rg_lru(x: Tensor, gates: Tensor, decay: Tensor, h: Tensor) -> Tensor:
    """All states h_1 to h_T.

        a_t = e^(-8 softplus(decay) sigmoid(r_t))
        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(i_t) x_t

    Args:
        x: (B, T, E); gates: (H, B, T, 2 E / H), r of each block and then i; both in any type.
        decay: (E,).
        h: (B, E), the state before the first token; float32 or wider.

    Returns:
        (B, T, E), in the type of h.
    """
    states: Tensor = choose("rg_lru", h, x.shape[1])(x, gates, decay, h)
    return states


def naive(x: Tensor, gates: Tensor, decay: Tensor, h: Tensor) -> Tensor:
    """The definition, in the type of h."""
    r, i = (t.movedim(0, 2).flatten(2) for t in gates.to(h.dtype).chunk(2, -1))
    log_a = log_decay(decay, h) * r.sigmoid()
    scale = (-torch.expm1(2 * log_a)).clamp(min=LEAST).sqrt()
    return linear_scan(log_a.exp(), scale * i.sigmoid() * x.to(h.dtype), h)


def log_decay(decay: Tensor, h: Tensor) -> Tensor:
    """The smallest log of a, (E,), in the type of h."""
    return -POWER * F.softplus(decay.to(h.dtype))
