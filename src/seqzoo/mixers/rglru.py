"""Hawk's recurrent block with the RG-LRU (De et al. 2024, "Griffin", arXiv 2402.19427).

B batch, T time, D width, E = expand D inner width, H blocks of E / H channels, W = 4 taps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Positive
from seqzoo.ops.activations import linear_gelu
from seqzoo.ops.local import causal_conv
from seqzoo.ops.rg_lru import POWER, rg_lru
from seqzoo.ops.tensors import accumulator

TAPS = 4  # of the convolution
SLOWEST, FASTEST = 0.999, 0.9  # a^c at first, section 2.4


class RGLRUState(NamedTuple):
    """The last tokens of the convolution and the state of eq. 4, in float32 or wider."""

    conv: Tensor  # (B, W - 1, E)
    h: Tensor  # (B, E)


class RGLRU(nn.Module):
    """The recurrent block (sections 2.3 and 2.4): y = (gelu(x W_1 + b_1) * h) W_2 + b_2, where h is
    the state of the RG-LRU after z, a causal convolution over 4 tokens of x W_3 + b_3:

        r_t = sigmoid(z_t W_r + b_r)            i_t = sigmoid(z_t W_i + b_i)
        a_t = e^(-8 softplus(decay) r_t)        h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t z_t)

    W_r and W_i are block-diagonal, with H blocks, as in the authors' code. h_0 = 0, as in the
    paper; the authors' code does not scale the first token's i_1 z_1 by sqrt(1 - a_1^2). `decay` is
    initialised so that e^(-8 softplus(decay)) is uniform between 0.9 and 0.999, as in the paper; in
    the authors' code that is the range of e^(-softplus(decay)).

    Args:
        dim: width D.
        n_heads: H.
        expand: E / D; E is rounded to a multiple of H.
        n_layers: layers of the model, for the initialisation of W_2 as GPT-2's.
    """

    @checked()
    def __init__(self, *, dim: Count, n_heads: Count, expand: Positive, n_layers: Count) -> None:
        super().__init__()
        size = max(1, round(expand * dim / n_heads))  # of a block
        inner = n_heads * size
        self.gate, self.project = nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.conv = nn.Parameter(torch.randn(inner, TAPS) * 0.05)
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.gates = nn.Parameter(torch.randn(n_heads, size, 2 * size) * size**-0.5)  # W_r, W_i
        self.gates_bias = nn.Parameter(torch.zeros(n_heads, 1, 2 * size))
        start = -torch.empty(inner).uniform_(FASTEST, SLOWEST).log() / POWER
        self.decay = nn.Parameter(torch.log(torch.expm1(start)))  # softplus of it is `start`
        self.out = nn.Linear(inner, dim)
        for linear in (self.gate, self.project):
            nn.init.normal_(linear.weight, std=dim**-0.5)
        nn.init.normal_(self.out.weight, std=(2 * n_layers * inner) ** -0.5)
        for linear in (self.gate, self.project, self.out):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, state: RGLRUState | None = None) -> tuple[Tensor, RGLRUState]:
        gate, z = linear_gelu(x, self.gate.weight, self.gate.bias), self.project(x)
        (B, T, E), H = z.shape, len(self.gates)
        with torch.autocast(x.device.type, enabled=False):
            if state is None:
                state = RGLRUState(accumulator(z, B, TAPS - 1, E), accumulator(z, B, E))
            z, conv = causal_conv(z, self.conv, state.conv)
            z = z + self.conv_bias
        blocks = z.view(B * T, H, E // H).transpose(0, 1)
        gates = torch.baddbmm(self.gates_bias, blocks, self.gates)  # (H, B T, 2 E / H)
        with torch.autocast(x.device.type, enabled=False):
            h = rg_lru(z, gates.view(H, B, T, 2 * E // H), self.decay, state.h)
            after = RGLRUState(conv, h[:, -1].clone())  # a view would keep the whole chunk
            h = h.to(gate.dtype) * gate
        return self.out(h).to(x.dtype), after
