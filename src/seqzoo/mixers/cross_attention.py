"""Attention to a source that was read: what joins a decoder to its encoder.

B batch, T tokens of the target, S of the source, D width, M width of what the encoder made of it,
H heads of K = D / H numbers.

Like every mixer it is a state machine. Its state is the source, as the keys and values that queries
will meet: it comes from `remember`, and is handed on as it is. So a decoder needs nothing beside
its state, and whoever selects rows of that selects their sources too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.ops.attention import full_attention


class Source(NamedTuple):
    """What can be attended to, for one layer."""

    k: Tensor  # (B, H, S, K)
    v: Tensor  # (B, H, S, K)
    valid: Tensor  # (B, S): whether there is a token, or only padding

    def accumulated(self) -> tuple[Tensor, ...]:
        """What must not be rounded: nothing is added to a source."""
        return ()


class CrossAttention(nn.Module):
    """Multi-head attention of a decoder to its source (Vaswani et al. 2017, section 3.2.3).

    Args:
        dim: width D, divisible by source_heads.
        encoded_dim: M.
        n_layers: of the model, for GPT-2's initialisation of the output projection.
    """

    def __init__(self, *, dim: int, encoded_dim: int, source_heads: int, n_layers: int) -> None:
        super().__init__()
        self.n_heads = source_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(encoded_dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for linear in (self.query, self.key_value):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def remember(self, encoded: Tensor, valid: Tensor) -> Source:
        """The state before the first token: what the encoder made (B, S, M), and whether each is a
        token (B, S)."""
        k, v = self.key_value(encoded).chunk(2, -1)
        return Source(self._heads(k).contiguous(), self._heads(v).contiguous(), valid)

    def forward(self, x: Tensor, source: Source | None = None) -> tuple[Tensor, Source]:
        if source is None:
            raise ValueError("a decoder that attends to a source begins with encode(source)")
        y = full_attention(self._heads(self.query(x)), source.k, source.v, source.valid)
        return self.out(y.transpose(1, 2).flatten(2)).to(x.dtype), source

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, 2, (self.n_heads, -1)).transpose(1, 2)
