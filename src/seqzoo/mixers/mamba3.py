"""Mamba-3 (Lahoti et al. 2026, arXiv 2603.15569): a state-space model with complex states, and no
convolution.

B batch, T time, D width, E = expand D inner width, H heads of P = E / H numbers, N numbers of state
each, A angles.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.mamba3 import Tokens, trapezoidal
from seqzoo.ops.norms import norm
from seqzoo.ops.tensors import accumulator

SLOWEST = 1e-4  # -A is at least this, as in the authors' code
EPS = 1e-5  # of the norms


class TurningState(NamedTuple):
    """The state, and the key and value of the last token, in float32 or wider."""

    h: Tensor  # (B, H, N, P)
    B: Tensor  # (B, H, N)
    x: Tensor  # (B, H, P)


class Mamba3(nn.Module):
    """The Mamba-3 block with one input and one output a head (SISO), one group.

        h_t = e^(dt_t A_t) R_t (h_{t-1} + (1 - l_t) dt_t B_{t-1} x_{t-1}^T) + l_t dt_t B_t x_t^T
        y_t = C_t h_t + d x_t        out = (y silu(z)) W

    dt = softplus(. + bias), A = -softplus(.) and l = sigmoid(.) of a head and token. R_t turns
    pairs of rows by dt_t pi tanh(.), the imaginary part of a complex state. B and C pass an RMS
    norm, whose weight all heads share, then a bias of each head is added. These functions and the
    initial values, but for W's, are those of the authors' code at its first release.

    Args:
        dim: width D.
        n_heads: H, which divides expand * dim.
        expand: E / D.
        state_size: N, a multiple of 4, or of 2 with rotary=full.
        rotary: how many of the N rows turn: `half`, the authors' default, `full`, or `none`, which
            makes the state real.
    """

    begins_with_product = True

    @checked(combinations.heads_divide_inner_width, combinations.angles_divide_state)
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        expand: Count,
        state_size: Count,
        rotary: Literal["half", "full", "none"],
    ) -> None:
        super().__init__()
        inner, N = expand * dim, state_size
        angles = {"half": N // 4, "full": N // 2, "none": 0}[rotary]
        self.sizes = [inner, inner, N, N, n_heads, n_heads, n_heads, angles]
        self.project = nn.Linear(dim, sum(self.sizes), bias=False)  # z, x, B, C, dt, A, l, angles
        dt = torch.exp(torch.empty(n_heads).uniform_(math.log(1e-3), math.log(0.1)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.B_norm, self.C_norm = (nn.Parameter(torch.ones(N)) for _ in "BC")
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(n_heads, N)) for _ in "BC")
        self.skip = nn.Parameter(torch.ones(n_heads))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, state: TurningState | None = None) -> tuple[Tensor, TurningState]:
        projected = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            if state is None:
                (H, N), P = self.B_bias.shape, self.out.in_features // len(self.skip)
                sizes = (H, N, P), (H, N), (H, P)
                state = TurningState(*(accumulator(projected, len(x), *s) for s in sizes))
            z, tokens = self._read(projected, state.h.dtype)
            y, h = trapezoidal(tokens, *state, self.skip)
            y = y.transpose(1, 2).flatten(2).to(z.dtype) * F.silu(z)
            after = TurningState(h, tokens.k[:, :, -1].clone(), tokens.v[:, :, -1].clone())
        return self.out(y).to(x.dtype), after

    def _read(self, projected: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tokens]:
        """z (B, T, E), and what the recurrence reads."""
        z, *parts = torch.split(projected, self.sizes, -1)
        x, B, C, dt, A, share, angle = (part.to(dtype) for part in parts)
        B = norm(B, self.B_norm.to(dtype), None, EPS, centred=False, product=False)
        C = norm(C, self.C_norm.to(dtype), None, EPS, centred=False, product=False)
        x = torch.unflatten(x, 2, (len(self.skip), -1)).transpose(1, 2)  # (B, H, T, P)
        dt, A, share = (
            t.transpose(1, 2) for t in (F.softplus(dt + self.dt_bias), F.softplus(A), share)
        )
        own = share.sigmoid() * dt
        return z, Tokens(
            q=C[:, None] + self.C_bias[:, None],
            k=B[:, None] + self.B_bias[:, None],
            v=x,
            log_a=-A.clamp(min=SLOWEST) * dt,
            before=dt - own,
            own=own,
            angle=dt[..., None] * (math.pi * angle.tanh())[:, None],
        )
