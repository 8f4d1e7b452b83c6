"""The Mamba-2 block (arXiv 2405.21060, eq. 2, sections 7.1 and 7.2), from its projection to its
normalised output.

B batch, T time, H heads of P numbers, E = H P, N numbers of state each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops import matrix_state
from seqzoo.ops.local import causal_conv
from seqzoo.ops.matrix_state import Tokens
from seqzoo.ops.registry import choose
from seqzoo.ops.watch import unwatched, watch

TAPS = 4  # of the convolution


class Weights(NamedTuple):
    """Parameters of the block, without its two matrices."""

    conv: Tensor  # (E + 2 N, TAPS)
    conv_bias: Tensor  # (E + 2 N,)
    dt_bias: Tensor  # (H,)
    A_log: Tensor  # (H,)
    skip: Tensor  # (H,)
    norm: Tensor  # (E,)


def mamba2(
    projected: Tensor, seen: Tensor, h: Tensor, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of T tokens, and the states after the last.

        z, xBC, dt = projected          x, B, C = silu(conv(xBC))       dt <- softplus(dt + bias)
        h_t = e^(dt_t A) h_{t-1} + dt_t B_t x_t^T                       A = -e^A_log, a head
        y_t = C_t h_t + skip x_t        out = rms_norm(y silu(z)) norm  over all heads

    Args:
        projected: (B, T, 2 E + 2 N + H), in any type.
        seen: (B, TAPS - 1, E + 2 N), the xBC of the tokens before the first; float32 or wider.
        h: (B, H, N, P), the state before the first token; float32 or wider.

    Returns:
        (B, T, E), in the type of `projected`; the last TAPS - 1 tokens of xBC, and h.
    """
    T = projected.shape[1]
    watch(lambda: matrix_state.weights(_tokens(projected[:1], seen[:1], h[:1], weights)[0], None))
    with unwatched():
        out, end = choose("mamba2", h, T)(projected, seen, h, weights)
    xBC = split(projected, h)[1]
    newest = xBC[:, T - TAPS + 1 :] if TAPS - 1 <= T else torch.cat((seen.to(xBC), xBC), 1)[:, T:]
    return out, newest.to(seen.dtype, copy=True), end


def split(projected: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z (B, T, E), xBC (B, T, E + 2 N) and dt (B, T, H)."""
    _, H, N, P = h.shape
    z, xBC, dt = torch.split(projected, [H * P, H * P + 2 * N, H], -1)
    return z, xBC, dt


def naive(projected: Tensor, seen: Tensor, h: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The definition, in the type of h."""
    z = split(projected, h)[0].to(h.dtype)
    (q, k, v, log_w, _, _), x = _tokens(projected, seen, h, weights)
    y, h = matrix_state.matrix_state(q, k, v, h, log_w)
    y = (y + weights.skip[:, None, None] * x).transpose(1, 2).flatten(2)
    y = F.rms_norm(y * F.silu(z), (y.shape[-1],)) * weights.norm
    return y.to(projected.dtype), h


def _tokens(projected: Tensor, seen: Tensor, h: Tensor, weights: Weights) -> tuple[Tokens, Tensor]:
    """What the recurrence reads, and x (B, H, T, P)."""
    _, H, N, P = h.shape
    _, xBC, dt = (part.to(h.dtype) for part in split(projected, h))
    xBC = F.silu(causal_conv(xBC, weights.conv, seen)[0] + weights.conv_bias)
    x, B, C = torch.split(xBC, [H * P, N, N], -1)
    x = torch.unflatten(x, 2, (H, P)).transpose(1, 2)
    dt = F.softplus(dt + weights.dt_bias.to(h.dtype)).transpose(1, 2)[..., None]  # (B, H, T, 1)
    log_w = -weights.A_log.to(h.dtype).exp()[:, None, None] * dt
    return Tokens(C[:, None], B[:, None], dt * x, log_w, None, None), x
