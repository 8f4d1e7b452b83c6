"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464).

B batch, T time, D width, H heads of K = D / H numbers of a key and V of a value, W = 4 taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, LargestRate
from seqzoo.mixers.delta import TAPS, Decay, DeltaMemory
from seqzoo.ops.delta_net import delta_net
from seqzoo.ops.local import causal_conv
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator


class GatedDeltaNet(nn.Module):
    """The delta rule with a decay of the whole head that the data sets (eq. 10 and section 3.4).

        S_t = M_t + beta_t k_t (v_t - k_t^T M_t)^T        y_t = q_t S_t / sqrt(K)
        M_t = alpha_t S_{t-1}                             alpha_t: `Decay`, a number a head

    Queries, keys and values pass a causal convolution over 4 tokens and silu; queries and keys then
    have length 1; beta = beta_max sigmoid(x W). Each head's output is divided by its root mean
    square, times silu(x W_g).

    Args:
        dim: width D, divisible by n_heads.
        expand_v: V / K; the authors' code has 2, with keys of 3/4 of D in all, here of D.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
        beta_max: as in `DeltaNet`.
    """

    @checked(combinations.heads_divide_width)
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        n_layers: Count,
        expand_v: Count,
        beta_max: LargestRate,
    ) -> None:
        super().__init__()
        self.n_heads, self.expand_v, self.beta_max = n_heads, expand_v, beta_max
        channels, values = (2 + expand_v) * dim, expand_v * dim
        self.qkv = nn.Linear(dim, channels, bias=False)
        self.conv = nn.Parameter(torch.empty(channels, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.beta = nn.Linear(dim, n_heads, bias=False)
        self.decay = Decay(nn.Linear(dim, n_heads, bias=False), n_heads, 1, least=0)
        self.gate = nn.Linear(dim, values, bias=False)
        self.norm = nn.Parameter(torch.ones(values // n_heads))
        self.out = nn.Linear(values, dim, bias=False)
        for linear in (self.qkv, self.beta, self.gate):
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(self, x: Tensor, state: DeltaMemory | None = None) -> tuple[Tensor, DeltaMemory]:
        (B, _, D), H = x.shape, self.n_heads
        qkv, beta, gate, log_w = self.qkv(x), self.beta(x), self.gate(x), self.decay(x)
        with torch.autocast(x.device.type, enabled=False):
            qkv, conv = causal_conv(qkv, self.conv, state and state.conv)
            S = state.S if state else accumulator(qkv, B, H, D // H, self.expand_v * D // H)
            y, S = delta_net(qkv, beta, S, log_w, beta_max=self.beta_max)
            y = head_norm(y, self.norm, None, gate=gate, eps=None, centred=False)
        y = self.out(y)
        return y.to(x.dtype), DeltaMemory(conv, S)
