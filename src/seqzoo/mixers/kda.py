"""Kimi Delta Attention (Kimi Team 2025, arXiv 2510.26692).

B batch, T time, D width, H heads of K = D / H numbers, W = 4 taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, LargestRate
from seqzoo.mixers.delta import TAPS, Decay, DeltaMemory
from seqzoo.ops.channel import gate
from seqzoo.ops.delta_net import delta_net
from seqzoo.ops.local import causal_conv
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator


class KimiDeltaAttention(nn.Module):
    """The delta rule with a decay of every channel of the key that the data sets (eq. 1 and section
    4).

        S_t = M_t + beta_t k_t (v_t - k_t^T M_t)^T        y_t = q_t S_t / sqrt(K)
        M_t = diag(alpha_t) S_{t-1}                       alpha_t: `Decay`, of a map of rank K

    Queries, keys and values pass a causal convolution over 4 tokens and silu; queries and keys then
    have length 1; beta = beta_max sigmoid(x W). Each head's output is divided by its root mean
    square, times sigmoid(x W_1 W_2), of rank K.

    Args:
        dim: width D, divisible by n_heads.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
        beta_max: as in `DeltaNet`; the paper's is 1.
    """

    @checked(combinations.heads_divide_width)
    def __init__(
        self, *, dim: Count, n_heads: Count, n_layers: Count, beta_max: LargestRate
    ) -> None:
        super().__init__()
        self.n_heads, self.beta_max = n_heads, beta_max
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = nn.Parameter(torch.empty(3 * dim, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.beta = nn.Linear(dim, n_heads, bias=False)
        self.decay = Decay(_low_rank(dim, dim // n_heads), n_heads, dim // n_heads, least=1)
        self.gate = _low_rank(dim, dim // n_heads)
        self.norm = nn.Parameter(torch.ones(dim // n_heads))
        self.out = nn.Linear(dim, dim, bias=False)
        for matrix in (self.qkv.weight, self.beta.weight, *self.gate.parameters()):
            nn.init.xavier_uniform_(matrix, gain=2**-2.5)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(self, x: Tensor, state: DeltaMemory | None = None) -> tuple[Tensor, DeltaMemory]:
        (B, _, D), H = x.shape, self.n_heads
        qkv, beta, opened, log_w = self.qkv(x), self.beta(x), self.gate(x), self.decay(x)
        with torch.autocast(x.device.type, enabled=False):
            qkv, conv = causal_conv(qkv, self.conv, state and state.conv)
            S = state.S if state else accumulator(qkv, B, H, D // H, D // H)
            y, S = delta_net(qkv, beta, S, log_w, beta_max=self.beta_max)
            y = head_norm(y, self.norm, None, gate=None, eps=None, centred=False)
            y = gate(opened.contiguous(), y.to(opened.dtype))
        y = self.out(y)
        return y.to(x.dtype), DeltaMemory(conv, S)


def _low_rank(dim: int, rank: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False))
