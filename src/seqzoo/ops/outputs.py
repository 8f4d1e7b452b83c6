"""Operations between a mixer's sums over time and its output.

B batch, T time, H heads of V numbers, D = H V.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose


def head_norm(
    y: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    gate: Tensor | None,
    eps: float | None,
    centred: bool,
) -> Tensor:
    """The outputs of heads, each normalised, then scaled and shifted, and times silu(gate).

    Args:
        y: (B, H, T, V), float32 or wider.
        scale, shift: D numbers, or V for all heads; None: 1 and 0.
        gate: (B, T, D), in any type; None: there is none.
        eps: added to the mean square; None: the distance from 1 to the next number in y's type.
        centred: whether the mean of a head is subtracted first: a group norm, else an RMS norm.

    Returns:
        (B, T, D), in the type of the gate, or of y where there is none.
    """
    eps = torch.finfo(y.dtype).eps if eps is None else eps
    scale, shift = (
        y.new_full((y.shape[1] * y.shape[3],), start) if x is None else _per_head(x.to(y.dtype), y)
        for x, start in ((scale, 1.0), (shift, 0.0))
    )
    run = choose("head_norm", y, y.shape[2])
    out: Tensor = run(y, scale, shift, gate=gate, eps=eps, centred=centred)
    return out


def _per_head(x: Tensor, y: Tensor) -> Tensor:
    """D numbers, of D or of V for all heads."""
    return x if len(x) == y.shape[1] * y.shape[3] else x.repeat(y.shape[1])


def naive_head_norm(
    y: Tensor, scale: Tensor, shift: Tensor, *, gate: Tensor | None, eps: float, centred: bool
) -> Tensor:
    """The definition, in the type of y."""
    V = y.shape[3:]
    y = F.layer_norm(y, V, eps=eps) if centred else F.rms_norm(y, V, eps=eps)
    y = y.transpose(1, 2).flatten(2) * scale + shift
    return y if gate is None else (y * F.silu(gate.to(y.dtype))).to(gate.dtype)
