"""The linear Transformer's attention: an RNN with a matrix state that trains in parallel."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.ops import attention, float32_or_wider, linear_attention


class AttentionMemory(NamedTuple):
    """The sums of eq. 18 and 19, in float32 or wider."""

    S: Tensor  # (B, H, K, K): attention memory
    z: Tensor  # (B, H, K): normaliser


class LinearAttention(nn.Module):
    """Causal linear attention with phi = elu + 1 (Katharopoulos et al. 2020, arXiv 2006.16236, eq.
    16-20).

    No 1/sqrt(K), as in the paper. Projections have biases, as in the authors' code.

    Args:
        dim: width D, divisible by n_heads.
        position: with `rope`, mapped queries and keys are turned in the numerator only (Su et al.
            2021, eq. 19). The memory is kept relative to the next token, so no position is stored.
        decay: `none` is the paper's sum over everything read; with `retention` a token keeps the
            share 1 - 2^-e of what came before, e from 1 for the first head to 7 for the last:
            half-lives from 1 to some 90 tokens, so that a stream of any length stays in balance
            (after Sun et al. 2023, arXiv 2307.08621, where e is 5 + h).
    """

    decay: Tensor  # (H,): log of what a token keeps of the one before

    def __init__(self, *, dim: int, n_heads: int, position: str, decay: str) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.rope = position == "rope"
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        rates = torch.zeros(n_heads)
        if decay == "retention":
            rates = torch.log1p(-(2.0 ** -torch.linspace(1 if n_heads > 1 else 7, 7, n_heads)))
        self.register_buffer("decay", rates, persistent=False)

    def forward(
        self, x: Tensor, state: AttentionMemory | None = None
    ) -> tuple[Tensor, AttentionMemory]:
        B, T, D = x.shape
        H, K = self.n_heads, D // self.n_heads
        qkv = self.qkv(x).view(B, T, 3, H, K).permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = float32_or_wider(*qkv.unbind(0))  # (B, H, T, K) each
            q, k = F.elu(q) + 1, F.elu(k) + 1
            S, z = state or (q.new_zeros(B, H, K, K), q.new_zeros(B, H, K))
            qn, kn = q, k
            if self.rope:
                positions = torch.arange(T, device=x.device)[None]
                q, k = attention.rotate(q, positions), attention.rotate(k, positions)
            decay = self.decay.to(q.dtype)
            y, S, z = linear_attention.linear_attention(q, k, v, S, z, decay=decay, qn=qn, kn=kn)
            if self.rope:  # a key turned by its position p is now one turned by p - T
                back = torch.full((1, K), -T, device=x.device)
                S = attention.rotate(S.transpose(-1, -2), back).transpose(-1, -2)
        y = y.transpose(1, 2).reshape(B, T, D).to(x.dtype)
        return self.out(y).to(x.dtype), AttentionMemory(S, z)
