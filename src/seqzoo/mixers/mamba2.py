"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): a state-space model as one more linear attention.

B batch, T time, D width, E = expand D inner width, H heads of P = E / H numbers, N numbers of state
each, W = 4 taps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.mamba2 import TAPS, Weights, mamba2
from seqzoo.ops.tensors import accumulator


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
        self.n_heads, self.state_size = n_heads, state_size
        channels = inner + 2 * state_size  # of x, B and C
        self.project = nn.Linear(dim, inner + channels + n_heads, bias=False)
        self.conv = nn.Parameter(torch.empty(channels, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(channels).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        dt = torch.exp(torch.empty(n_heads).uniform_(math.log(1e-3), math.log(0.1)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(n_heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, state: SSMState | None = None) -> tuple[Tensor, SSMState]:
        B, inner, N = len(x), self.norm.numel(), self.state_size
        projected = self.project(x)
        with torch.autocast(x.device.type, enabled=False):
            if state is None:
                conv = accumulator(projected, B, TAPS - 1, inner + 2 * N)
                h = accumulator(projected, B, self.n_heads, N, inner // self.n_heads)
                state = SSMState(conv, h)
            parts = self.conv, self.conv_bias, self.dt_bias, self.A_log, self.skip, self.norm
            y, *after = mamba2(projected, *state, Weights(*parts))
        return self.out(y).to(x.dtype), SSMState(*after)
