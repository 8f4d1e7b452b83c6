"""Attention of a decoder to its encoded source.

B batch, T tokens of the target, S tokens of the source, D width, M width of the encoded source, H
heads of K = D / H numbers.

Like every mixer it is a state machine. Its state is the source, as keys and values: `remember`
makes it, and every step returns it unchanged. So a decoder needs nothing but its state, and
selecting rows of the state selects their sources.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config.combinations import source_heads_divide_width
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.attention import full_attention


class Source(NamedTuple):
    """The keys and values of an encoded source, for one layer."""

    k: Tensor  # (B, H, S, K)
    v: Tensor  # (B, H, S, K)
    valid: Tensor  # (B, S): true at tokens, false at padding

    def accumulated(self) -> tuple[Tensor, ...]:
        """The leaves that sum over time: none, as a source does not change."""
        return ()

    def initial(self) -> Source:
        """The state before the first token of the target: the source itself."""
        return self


class CrossAttention(nn.Module):
    """Multi-head attention of a decoder to its source (Vaswani et al. 2017, section 3.2.3).

    Args:
        dim: width D, divisible by source_heads.
        encoded_dim: M.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
    """

    @checked(source_heads_divide_width)
    def __init__(
        self, *, dim: Count, encoded_dim: Count, source_heads: Count, n_layers: Count
    ) -> None:
        super().__init__()
        self.n_heads = source_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(encoded_dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for linear in (self.query, self.key_value):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def remember(self, encoded: Tensor, valid: Tensor) -> Source:
        """The state before the first token of the target.

        Args:
            encoded: (B, S, M).
            valid: (B, S), true at tokens, false at padding.
        """
        k, v = self.key_value(encoded).chunk(2, -1)
        return Source(self._heads(k).contiguous(), self._heads(v).contiguous(), valid)

    def forward(self, x: Tensor, source: Source | None = None) -> tuple[Tensor, Source]:
        if source is None:
            raise ValueError("a decoder needs a source: start from the state of encode(source)")
        y = full_attention(self._heads(self.query(x)), source.k, source.v, source.valid)
        return self.out(y.transpose(1, 2).flatten(2)).to(x.dtype), source

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, 2, (self.n_heads, -1)).transpose(1, 2)
