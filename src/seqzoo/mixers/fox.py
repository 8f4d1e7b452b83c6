"""The Forgetting Transformer (Lin et al. 2025, arXiv 2503.02130): softmax attention whose scores
fade by forget gates, in place of positions.

B batch, T time, D width, H heads, K = D / H numbers of a key or value, S tokens read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Flag
from seqzoo.ops.attention import forgetting_attention
from seqzoo.ops.norms import rms
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import float32_or_wider


class ForgettingCache(NamedTuple):
    """Keys, values and forget gates of the tokens read."""

    k: Tensor  # (B, H, S, K)
    v: Tensor  # (B, H, S, K)
    log_f: Tensor  # (B, H, S, 1), float32 or wider
    shift: Tensor | tuple[()] = ()  # (B, 2 H, K): the last key and value before they were mixed

    def last(self, n: int) -> ForgettingCache:
        """The newest `n` tokens only."""
        start = max(0, self.k.shape[2] - n)
        k, v, log_f = (x[:, :, start:] for x in self[:3])
        return ForgettingCache(k, v, log_f, self.shift)

    def initial(self) -> ForgettingCache:
        """The state before the first token, for as many rows: no keys."""
        k, v, log_f = (x[:, :, :0] for x in self[:3])
        shift = torch.zeros_like(self.shift) if isinstance(self.shift, Tensor) else ()
        return ForgettingCache(k, v, log_f, shift)


class ForgettingAttention(nn.Module):
    """Forgetting attention: a gate a head and token scales down all that came before.

        f_t = sigmoid(x_t w_f + b_f)
        y_t = sum over s <= t of softmax_s(q_t k_s / sqrt(K) + sum over s < i <= t of log f_i) v_s

    Args:
        dim: width D, divisible by n_heads.
        pro: the paper's Pro block: keys and values mixed with those of the token before by a gate a
            head (eq. 14), RMS norms of queries, keys and outputs a head, and an output gate
            sigmoid(x W_g).
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
    """

    begins_with_product = True

    @checked(combinations.heads_divide_width)
    def __init__(self, *, dim: Count, n_heads: Count, pro: Flag, n_layers: Count) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.forget = nn.Linear(dim, n_heads)
        self.pro = pro
        if pro:
            self.shift = nn.Linear(dim, 2 * n_heads, bias=False)  # of keys, then of values
            self.gate = nn.Linear(dim, dim, bias=False)
            self.q_norm, self.k_norm, self.norm = (nn.Parameter(torch.ones(dim)) for _ in range(3))
        self.out = nn.Linear(dim, dim, bias=False)
        for linear in (m for m in self.children() if isinstance(m, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.forget.bias)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(
        self, x: Tensor, state: ForgettingCache | None = None
    ) -> tuple[Tensor, ForgettingCache]:
        H = self.n_heads
        q, kv = torch.split(_heads(self.qkv(x), 3 * H), [H, 2 * H], 1)
        (gates,) = float32_or_wider(self.forget(x).transpose(1, 2)[..., None])  # (B, H, T, 1)
        shift: Tensor | tuple[()] = ()
        if self.pro:
            before = kv.new_zeros(kv[:, :, 0].shape) if state is None else state.shift
            assert isinstance(before, Tensor)
            previous = torch.cat((before[:, :, None].to(kv.dtype), kv[:, :, :-1]), 2)
            shift = kv[:, :, -1].clone()  # a view would keep the whole chunk in memory
            share = self.shift(x).transpose(1, 2)[..., None].sigmoid().to(kv.dtype)
            kv = kv + share * (previous - kv)
        k, v = kv.chunk(2, 1)
        if self.pro:
            q, k = (rms(a, w.view(H, 1, -1)) for a, w in ((q, self.q_norm), (k, self.k_norm)))
        past = None if state is None else state[:3]
        y, k, v, log_f = forgetting_attention(q, k, v, F.logsigmoid(gates), past)
        if self.pro:
            (wide,) = float32_or_wider(y)
            y = head_norm(wide, self.norm, None, gate=None, eps=1e-6, centred=False)
            y = y * self.gate(x).sigmoid()
        else:
            y = y.transpose(1, 2).flatten(2)
        return self.out(y.to(x.dtype)).to(x.dtype), ForgettingCache(k, v, log_f, shift)


def _heads(x: Tensor, n: int) -> Tensor:
    """(B, T, n K) as (B, n, T, K)."""
    return torch.unflatten(x, 2, (n, -1)).transpose(1, 2)
