"""HGRN2 (Qin et al. 2024, arXiv 2404.07904): gated linear attention whose key is what it forgets.

B batch, T time, D width, H heads of K = D / H numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Natural
from seqzoo.mixers.mlp import gpt2_init
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.norms import norm
from seqzoo.ops.tensors import accumulator

EPS = 1e-5  # of the norm


class HGRN2State(NamedTuple):
    """The state of section 3.2, in float32 or wider."""

    S: Tensor  # (B, H, K, K)


class HGRN2(nn.Module):
    """HGRN2 (section 3.2): a forget gate for every channel, with a lower bound that is larger in
    higher layers, so that these remember longer.

        S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T        y_t = q_t S_t
        f_t = bound + (1 - bound) sigmoid(x_t W_f)       q_t = silu(x_t W_q)       i_t = x_t W_i

    The output is rms_norm(y) W over all heads; the norm has a weight, which the authors' own code
    leaves out and flash-linear-attention has. The query stands where the first HGRN has its output
    gate.

    In the paper the bounds of all layers are the running sums of one softmax over layers, without
    the first layer's share. Here each layer learns its own, so that layers need not know each
    other. It begins where the paper's do: at layer / n_layers, and the first layer has none. That
    the bounds keep rising from layer to layer is not enforced.

    Args:
        dim: width D.
        n_heads: H, which divides D.
        layer: index of the block, from 0; the initial bound depends on it and n_layers.
    """

    @checked(combinations.heads_divide_width)
    def __init__(self, *, dim: Count, n_heads: Count, layer: Natural, n_layers: Count) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.forget, self.input = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.bound = None  # before the sigmoid
        if layer > 0:
            odds = layer / (n_layers - layer)
            self.bound = nn.Parameter(torch.full((dim,), math.log(odds)))
        self.norm = nn.Parameter(torch.ones(dim))
        self.out = nn.Linear(dim, dim, bias=False)
        for linear in (self.query, self.forget, self.input):
            gpt2_init(linear)
        gpt2_init(self.out, residual_layers=n_layers)

    def forward(self, x: Tensor, state: HGRN2State | None = None) -> tuple[Tensor, HGRN2State]:
        q, f, i = F.silu(self.query(x)), self.forget(x), self.input(x)
        with torch.autocast(x.device.type, enabled=False):
            K = x.shape[2] // self.n_heads
            (S,) = state or (accumulator(q, len(x), self.n_heads, K, K),)
            log_f, k = self._gates(f.to(S.dtype))
            heads = (t.unflatten(2, (self.n_heads, K)).transpose(1, 2) for t in (q, k, i, log_f))
            q, k, i, log_f = heads  # (B, H, T, K)
            y, S = matrix_state(q, k, i, S, log_f)
            y = y.transpose(1, 2).flatten(2)
            y = norm(y, self.norm.to(y.dtype), None, EPS, centred=False, product=False)
        return self.out(y.to(x.dtype)).to(x.dtype), HGRN2State(S)

    def _gates(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """log f_t and 1 - f_t, of x_t W_f."""
        if self.bound is None:
            return F.logsigmoid(f), (-f).sigmoid()
        bound = self.bound.to(f.dtype)
        # log f = log(sigmoid(x)) + log(1 + bound e^-x), which overflows for no x.
        log_f = F.softplus(F.logsigmoid(bound) - f) - F.softplus(-f)
        return log_f, (-bound).sigmoid() * (-f).sigmoid()
