"""Softmax attention as a state machine: its state is the cache of keys and values, which grows by
one a token, or is cut to a fixed size. And without a state, for an encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config import cache_policy
from seqzoo.ops import attention, bounded_cache, note, unwatched
from seqzoo.ops.bounded_cache import BoundedCache, CachePolicy


class KVCache(NamedTuple):
    """Keys and values of the tokens read: a multi-state RNN (Oren et al. 2024, arXiv 2401.06104).

    Keys are stored turned to their positions, so a cut cache needs no turning again. Every step
    makes a new cache by `torch.cat`: writing into a preallocated one would change a state that
    somebody else may hold. The copy is a fifth of a step at 2,048 tokens, a third at 8,192
    (docs/results.md, "The cache").
    """

    k: Tensor  # (B, H, S, K)
    v: Tensor  # (B, H, S, K)
    position: Tensor  # (B,): of the next token

    def last(self, n: int) -> KVCache:
        """The newest `n` tokens only."""
        start = max(0, self.k.shape[2] - n)
        return KVCache(self.k[:, :, start:], self.v[:, :, start:], self.position)


class CausalAttention(nn.Module):
    """Multi-head causal self-attention (Vaswani et al. 2017, section 3.2).

    Args:
        dim: width D, divisible by n_heads.
        n_kv_heads: heads of keys and values, each shared by n_heads / n_kv_heads heads of queries;
            None: as many as n_heads.
        position: `rope` turns queries and keys by their position (Su et al. 2021, arXiv
            2104.09864); with any other value positions are the embedding's business.
        cache: a policy such as `tova:256`: the state is then a cache of that many tokens
            (`seqzoo.ops.bounded_cache`); None: everything is kept.
        n_layers: of the model, for GPT-2's initialisation of the output projection.
    """

    def __init__(
        self,
        *,
        dim: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        position: str,
        cache: str | None = None,
        n_layers: int,
    ) -> None:
        super().__init__()
        shared = n_kv_heads or n_heads
        self.heads = (n_heads, shared, shared)  # of queries, keys, values
        self.rope = position == "rope"
        self.policy = CachePolicy(*cache_policy("cache", cache)) if cache else None
        self.qkv = nn.Linear(dim, sum(self.heads) * (dim // n_heads), bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.qkv.weight, std=0.02)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(
        self, x: Tensor, state: KVCache | BoundedCache | None = None
    ) -> tuple[Tensor, KVCache | BoundedCache]:
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, sum(self.heads), -1).transpose(1, 2)
        q, k, v = qkv.split(self.heads, 1)  # (B, H or G, T, K)
        first = (
            torch.zeros(B, dtype=torch.long, device=x.device) if state is None else state.position
        )
        if self.rope:
            positions = (first[:1] if state is None else first)[:, None] + torch.arange(
                T, device=x.device
            )
            q, k = attention.rotate(q, positions), attention.rotate(k, positions)
        if self.policy is not None:
            if isinstance(state, KVCache):
                raise ValueError("a bounded cache cannot go on from a whole one: begin with None")
            note("attention", self.policy.name)
            bounded = bounded_cache.empty(self.policy, k) if state is None else state
            y, bounded = bounded_cache.attend(self.policy, q, k, v, bounded)
            return self.out(y.transpose(1, 2).flatten(2)).to(x.dtype), bounded
        if state is not None:
            k = torch.cat((state.k.to(k.dtype), k), 2)
            v = torch.cat((state.v.to(v.dtype), v), 2)
        else:
            k, v = k.contiguous(), v.contiguous()  # a view would keep the queries alive
        y = attention.causal_attention(q, k, v).transpose(1, 2).reshape(B, T, D)
        return self.out(y).to(x.dtype), KVCache(k, v, first + T)


class FullAttention(CausalAttention):
    """The same, but every token sees all: for an encoder, which has the whole text at once."""

    def forward(  # type: ignore[override]
        self, x: Tensor, state: tuple[()] | None = None
    ) -> tuple[Tensor, tuple[()]]:
        qkv = self.qkv(x).unflatten(2, (sum(self.heads), -1)).transpose(1, 2)
        q, k, v = qkv.split(self.heads, 1)  # (B, H or G, T, K)
        if self.rope:
            positions = torch.arange(x.shape[1], device=x.device)[None]
            q, k = attention.rotate(q, positions), attention.rotate(k, positions)
        with unwatched():
            y = attention.full_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2)).to(x.dtype), ()
