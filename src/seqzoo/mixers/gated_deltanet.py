"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464).

B batch, T time, D width, H heads of K = D / H numbers of a key and V of a value, W = 4 taps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, LargestRate
from seqzoo.mixers.deltanet import TAPS, DeltaMemory
from seqzoo.ops.delta_net import delta_net
from seqzoo.ops.local import causal_conv
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator, float32_or_wider


class GatedDeltaNet(nn.Module):
    """The delta rule with a decay of the whole head that the data sets (eq. 10 and section 3.4).

        S_t = M_t + beta_t k_t (v_t - k_t^T M_t)^T        y_t = q_t S_t / sqrt(K)
        M_t = alpha_t S_{t-1}                             alpha_t: `Decay`, a number a head

    Queries, keys and values pass a causal convolution over 4 tokens and silu; queries and keys then
    have length 1; beta = beta_max sigmoid(x W). Each head's output is divided by its root mean
    square, times silu(x W_g).

    Args:
        dim: width D, divisible by n_heads.
        expand_v: V / K; the paper's is 2.
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
        self.decay = Decay(nn.Linear(dim, n_heads, bias=False), n_heads, 1)
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
            (qkv,) = float32_or_wider(qkv)
            qkv, conv = causal_conv(qkv, self.conv, state and state.conv)
            S = state.S if state else accumulator(qkv, B, H, D // H, self.expand_v * D // H)
            y, S = delta_net(qkv, beta, S, log_w, beta_max=self.beta_max)
            y = head_norm(y, self.norm, None, gate=gate, eps=None, centred=False)
        y = self.out(y)
        return y.to(x.dtype), DeltaMemory(conv, S)


class Decay(nn.Module):
    """The log of a decay that the data sets, as Mamba-2 has it (arXiv 2405.21060):
    log w = -e^A softplus(project(x) + bias), with a number A a head.

    Args:
        project: to n_heads * channels numbers.
        channels: of each head that have a decay of their own; 1: the whole head has one.
    """

    def __init__(self, project: nn.Module, n_heads: int, channels: int) -> None:
        super().__init__()
        self.project = project
        for linear in project.modules():
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        speed = torch.empty(n_heads * channels).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.bias = nn.Parameter(speed + torch.log(-torch.expm1(-speed)))  # softplus of it is speed

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, n_heads * channels), at most 0, in float32 or wider."""
        (x,) = float32_or_wider(self.project(x))
        A = self.A_log.exp().repeat_interleave(len(self.bias) // len(self.A_log))
        return F.softplus(x + self.bias) * -A
