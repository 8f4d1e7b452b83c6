"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): a state-space model as one more linear attention.

B batch, T time, D width, E = expand D inner width, H heads of P = E / H numbers, N numbers of state
each, W = 4 taps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.local import causal_conv
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.tensors import float32_or_wider

TAPS = 4


class SSMState(NamedTuple):
    """The last tokens of the convolution, and the state of eq. 2, in float32 or wider."""

    conv: Tensor  # (B, W - 1, E + 2 N)
    h: Tensor  # (B, H, N, P)


class Mamba2(nn.Module):
    """The Mamba-2 block (eq. 2, sections 7.1 and 7.2), one group.

        h_t = e^(dt_t A) h_{t-1} + dt_t B_t x_t^T        y_t = C_t h_t + d x_t        A < 0, a head

    The discretization by dt, which eq. 2 leaves out, is that of Gu & Dao 2023 (arXiv 2312.00752).
    x, B and C pass a causal convolution over 4 tokens and silu, dt = softplus(. + bias). In the
    terms of linear attention C is the query, B the key, dt x the value. The output is
    rms_norm(y silu(z)) W, whose epsilon is float32's.

    Args:
        dim: width D.
        n_heads: H, which divides expand * dim.
        expand: E / D.
        state_size: N.
    """

    @checked(combinations.heads_divide_inner_width)
    def __init__(self, *, dim: Count, n_heads: Count, expand: Count, state_size: Count) -> None:
        super().__init__()
        inner = expand * dim
        self.n_heads, self.sizes = n_heads, [inner, inner + 2 * state_size, n_heads]
        self.split = [inner, state_size, state_size]
        self.project = nn.Linear(dim, sum(self.sizes), bias=False)
        channels = self.sizes[1]
        self.conv = nn.Parameter(torch.empty(channels, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(channels).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        dt = torch.exp(torch.empty(n_heads).uniform_(math.log(1e-3), math.log(0.1)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(n_heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, state: SSMState | None = None) -> tuple[Tensor, SSMState]:
        batch, T, _ = x.shape
        z, xBC, dt = torch.split(self.project(x), self.sizes, -1)
        with torch.autocast(x.device.type, enabled=False):
            z, xBC, dt, bias, A = float32_or_wider(z, xBC, dt, self.dt_bias, self.A_log)
            xBC, conv = causal_conv(xBC, self.conv, state and state.conv)
            u, B, C = torch.split(F.silu(xBC + self.conv_bias), self.split, -1)
            u = u.view(batch, T, self.n_heads, -1).transpose(1, 2)  # (B, H, T, P)
            B, C = B[:, None], C[:, None]  # (B, 1, T, N), shared by all heads
            dt = F.softplus(dt + bias).transpose(1, 2)[..., None]  # (B, H, T, 1)
            h = state.h if state else u.new_zeros(batch, *u.shape[1:2], B.shape[-1], u.shape[-1])
            y, h = matrix_state(C, B, dt * u, h, -A.exp()[:, None, None] * dt)
            y = (y + self.skip[:, None, None] * u).transpose(1, 2).flatten(2)
            y = F.rms_norm(y * F.silu(z), (y.shape[-1],)) * self.norm
        return self.out(y.to(x.dtype)).to(x.dtype), SSMState(conv, h)
