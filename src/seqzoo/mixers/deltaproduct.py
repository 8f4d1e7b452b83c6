"""DeltaProduct (Siems et al. 2025, arXiv 2502.10297).

B batch, T time, D width, H heads of K = D / H numbers, n steps a token, W = 4 taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Flag, LargestRate
from seqzoo.mixers.delta import TAPS, Decay, DeltaMemory
from seqzoo.ops.delta_net import delta_net, weights
from seqzoo.ops.local import causal_conv
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator
from seqzoo.ops.watch import unwatched, watch


class DeltaProduct(nn.Module):
    """Several steps of the delta rule for every token (2502.10297), each with a key, a value and a
    rate of its own, so that a product of Householder-like matrices multiplies the state.

        S_{t,0} = alpha_t S_{t-1}                                         S_t = S_{t,n}
        S_{t,j} = S_{t,j-1} + beta_{t,j} k_{t,j} (v_{t,j} - k_{t,j}^T S_{t,j-1})^T
        y_t = q_t S_t / sqrt(K)

    Queries, keys and values pass a causal convolution over 4 tokens and silu; queries and keys then
    have length 1; beta = beta_max sigmoid(x W). Each head's output is divided by its root mean
    square.

    One step without gates is DeltaNet; with gates, Gated DeltaNet whose values are as wide as keys.

    Args:
        dim: width D, divisible by n_heads.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
        steps: n.
        gated: whether alpha is a decay of each head that the data sets (`Decay`), and the output is
            multiplied by silu(x W_g), as in Gated DeltaProduct; else alpha = 1. The authors' code
            has a switch for each, and values of twice the keys' width.
        beta_max: as in `DeltaNet`. With 2, as in the paper, n steps can be any product of n
            reflections, such as a rotation of a plane by 2.
    """

    @checked(combinations.heads_divide_width)
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        n_layers: Count,
        steps: Count,
        gated: Flag,
        beta_max: LargestRate,
    ) -> None:
        super().__init__()
        self.n_heads, self.steps, self.beta_max = n_heads, steps, beta_max
        channels = (1 + 2 * steps) * dim
        self.qkv = nn.Linear(dim, channels, bias=False)
        self.conv = nn.Parameter(torch.empty(channels, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.beta = nn.Linear(dim, steps * n_heads, bias=False)
        self.decay = (
            Decay(nn.Linear(dim, n_heads, bias=False), n_heads, 1, least=0) if gated else None
        )
        self.gate = nn.Linear(dim, dim, bias=False) if gated else None
        self.norm = nn.Parameter(torch.ones(dim // n_heads))
        self.out = nn.Linear(dim, dim, bias=False)
        for linear in (self.qkv, self.beta, self.gate):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(self, x: Tensor, state: DeltaMemory | None = None) -> tuple[Tensor, DeltaMemory]:
        (B, T, D), H, n = x.shape, self.n_heads, self.steps
        qkv, beta = self.qkv(x), self.beta(x).view(B, T * n, H)
        log_w = None if self.decay is None else self.decay(x)
        gate = None if self.gate is None else self.gate(x)
        with torch.autocast(x.device.type, enabled=False):
            qkv, conv = causal_conv(qkv, self.conv, state and state.conv)
            S = state.S if state else accumulator(qkv, B, H, D // H, D // H)
            qkv, log_w = self._stretched(qkv), self._stretched_decay(log_w)
            watch(lambda: self._weights(qkv, beta, S, log_w))
            with unwatched():
                y, end = delta_net(qkv, beta, S, log_w, beta_max=self.beta_max)
            y = y[:, :, n - 1 :: n]  # after the last step of each token
            y = head_norm(y, self.norm, None, gate=gate, eps=None, centred=False)
        y = self.out(y if self.gate else y.to(x.dtype))
        return y.to(x.dtype), DeltaMemory(conv, end)

    def _stretched(self, qkv: Tensor) -> Tensor:
        """The query, n keys and n values of a token, as n tokens with that query: (B, n T, 3 D)."""
        n = self.steps
        if n == 1:
            return qkv
        D = qkv.shape[2] // (1 + 2 * n)
        q, k, v = (torch.unflatten(x, 2, (-1, D)) for x in torch.split(qkv, [D, n * D, n * D], 2))
        return torch.cat((q.expand_as(k), k, v), 3).flatten(1, 2)

    def _stretched_decay(self, log_w: Tensor | None) -> Tensor | None:
        """A token decays before its first step: (B, n T, H)."""
        if log_w is None or self.steps == 1:
            return log_w
        kept = log_w.new_zeros(1, 1, 1).expand(*log_w.shape[:2], (self.steps - 1) * self.n_heads)
        return torch.unflatten(torch.cat((log_w, kept), 2), 2, (self.steps, -1)).flatten(1, 2)

    def _weights(self, qkv: Tensor, beta: Tensor, S: Tensor, log_w: Tensor | None) -> Tensor:
        """The weights of each token's values in each output, added up: (H, T, T)."""
        n = self.steps
        of_steps = weights(qkv, beta, S, log_w, beta_max=self.beta_max)[:, n - 1 :: n]
        return torch.unflatten(of_steps, 2, (-1, n)).sum(3)
