"""Softmax attention as a state machine, whose state is the cache of keys and values: it grows by
one entry a token, holds a window, or is cut to a fixed size. And without a state, for encoders."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config import combinations, values
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Flag, Positive
from seqzoo.ops import attention, bounded_cache
from seqzoo.ops.attention import Scoring
from seqzoo.ops.bounded_cache import BoundedCache, CachePolicy
from seqzoo.ops.norms import rms
from seqzoo.ops.registry import record
from seqzoo.ops.watch import unwatched


class KVCache(NamedTuple):
    """Keys and values of the tokens read: a multi-state RNN (Oren et al. 2024, arXiv 2401.06104).

    Keys are stored turned to their positions, so a cut cache needs no turning again. Both grow in
    memory with room after them, which the state before does not see (`ops.attention.append`).
    """

    k: Tensor  # (B, H, S, K)
    v: Tensor  # (B, H, S, K)
    position: Tensor  # (B,): of the next token

    def last(self, n: int) -> KVCache:
        """The newest `n` tokens only."""
        start = max(0, self.k.shape[2] - n)
        return KVCache(self.k[:, :, start:], self.v[:, :, start:], self.position)

    def initial(self) -> KVCache:
        """The state before the first token, for as many rows: no keys."""
        empty = self.k[:, :, :0], self.v[:, :, :0]
        return KVCache(*empty, torch.zeros_like(self.position))


class Window(NamedTuple):
    """Keys and values of the newest W - 1 tokens, the newest last; before as many were read, the
    first places are empty. Keys are turned to their positions, as in `KVCache`."""

    k: Tensor  # (B, G, W - 1, K)
    v: Tensor  # (B, G, W - 1, K)
    position: Tensor  # (B,): of the next token

    def accumulated(self) -> tuple[Tensor, ...]:
        """The leaves that sum over time: none; keys and values keep their dtype."""
        return ()

    def newest(self, n: int) -> Window:
        """The places of the newest `n` tokens only: after that many, no other is filled."""
        start = max(0, self.k.shape[2] - n)
        return Window(self.k[:, :, start:], self.v[:, :, start:], self.position)


class CausalAttention(nn.Module):
    """Multi-head causal self-attention (Vaswani et al. 2017, section 3.2).

    Args:
        dim: width D, divisible by n_heads.
        n_kv_heads: heads of keys and values, each shared by n_heads / n_kv_heads heads of queries;
            None: n_heads.
        position: `rope` turns queries and keys by their position (Su et al. 2021, arXiv
            2104.09864); any other value leaves positions to the embedding.
        window: W: a token sees itself and the W - 1 before it (Beltagy et al. 2020, arXiv
            2004.05150; Mistral 7B, arXiv 2310.06825); the state is the newest W - 1. None: all.
        qk_norm: RMS norms of the queries and keys of each head, before positions, with a learned
            scale each that the heads share (Henry et al. 2020, arXiv 2010.04245; Qwen3, arXiv
            2505.09388).
        softcap: largest absolute score; see `Scoring`. None: there is none.
        sinks: a learned score in the softmax of each head; see `Scoring`.
        value_residual: the values of a layer are mixed with those of the first one by a learned
            share (Zhou et al. 2024, arXiv 2410.17897, the variant with a learned share a layer). A
            mixer sees no token ids, so it has no value embeddings; the first layer's values, which
            are a map of embedded tokens, take their place.
        cache: a policy such as `tova:256`: the state is then a cache of that many tokens
            (`seqzoo.ops.bounded_cache`); None: every token is kept.
        first: whether it is the first attention of its model, whose values the others read.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
    """

    begins_with_product = True

    @checked(
        combinations.heads_divide_width,
        combinations.even_heads_for_rope,
        combinations.kv_heads_divide_heads,
        combinations.window_or_cache,
        combinations.value_residual_has_layers,
    )
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        n_kv_heads: Count | None = None,
        position: Literal["rope", "learned", "sinusoidal", "none"],
        window: Count | None = None,
        qk_norm: Flag = False,
        softcap: Positive | None = None,
        sinks: Flag = False,
        value_residual: Flag = False,
        cache: values.CachePolicy | None = None,
        first: Flag = True,
        n_layers: Count,
    ) -> None:
        super().__init__()
        shared = n_kv_heads or n_heads
        self.heads = (n_heads, shared, shared)  # of queries, keys, values
        self.rope = position == "rope"
        self.window, self.softcap = window, softcap
        self.sinks = nn.Parameter(torch.zeros(n_heads)) if sinks else None
        scales = (nn.Parameter(torch.ones(dim // n_heads)) if qk_norm else None for _ in range(2))
        self.q_norm, self.k_norm = scales
        self.hands_on = value_residual
        later = value_residual and not first
        self.share = nn.Parameter(torch.tensor(0.5)) if later else None  # of the first layer
        self.policy = CachePolicy(*values.cache_policy(cache)) if cache else None
        self.qkv = nn.Linear(dim, sum(self.heads) * (dim // n_heads), bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.qkv.weight, std=0.02)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(
        self,
        x: Tensor,
        state: KVCache | Window | BoundedCache | None = None,
        v_first: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """y and the state; with value_residual also the values (B, G, T, K) of the first layer, for
        the next layer."""
        B, T, D = x.shape
        zero = torch.zeros(B, dtype=torch.long, device=x.device)
        first = zero if state is None else state.position
        of_rows = first[:1] if state is None else first  # all rows alike in a fresh state
        q, k, v, *extra = self.project(x, of_rows, v_first)
        y, state = self.attend(q, k, v, first, state)
        return self.out(y.transpose(1, 2).flatten(2)).to(x.dtype), state, *extra

    def project(self, x: Tensor, first: Tensor, v_first: Tensor | None) -> tuple[Tensor, ...]:
        """Queries (B, H, T, K), keys and values (B, G, T, K) of tokens from position `first` on;
        with value_residual also the values of the first layer."""
        qkv = torch.unflatten(self.qkv(x), 2, (sum(self.heads), -1)).transpose(1, 2)
        q, k, v = torch.split(qkv, list(self.heads), 1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = rms(q, self.q_norm), rms(k, self.k_norm)
        if self.rope:
            positions = first[:, None] + torch.arange(x.shape[1], device=x.device)
            q, k = attention.rotate(q, positions), attention.rotate(k, positions)
        if not self.hands_on:
            return q, k, v
        if v_first is None or self.share is None:
            return q, k, v, v
        return q, k, v + self.share.to(v.dtype) * (v_first - v), v_first

    @property
    def scoring(self) -> Scoring:
        """What decides the weights beside the products of queries and keys."""
        return Scoring(self.window, self.softcap, self.sinks)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, first: Tensor, state: Any) -> Any:
        """Outputs (B, H, T, K) of the tokens from position `first` (B,) on, and the state after
        them."""
        after = first + q.shape[2]
        if self.policy is not None:
            if isinstance(state, KVCache):
                raise ValueError(
                    "a bounded cache cannot continue a growing one: start from state None"
                )
            record("attention", self.policy.name)
            bounded = bounded_cache.empty(self.policy, k) if state is None else state
            return bounded_cache.attend(self.policy, q, k, v, bounded, self.scoring)
        if self.window is not None:
            past = None if state is None else (state.k, state.v)
            y, k, v = attention.attend_within(q, k, v, past, first, self.scoring)
            return y, Window(k, v, after)
        if state is not None:
            y, k, v = attention.attend_after(q, k, v, state.k, state.v, self.scoring)
            return y, KVCache(k, v, after)
        y = attention.causal_attention(q, k, v, self.scoring)
        k, v = k.contiguous(), v.contiguous()  # a view would keep the queries in memory
        return y, KVCache(k, v, after)


class FullAttention(CausalAttention):
    """`CausalAttention` without the mask: every token attends to all, for encoders; a window is the
    decoder's alone. No state."""

    def forward(  # type: ignore[override]
        self, x: Tensor, state: tuple[()] | None = None, v_first: Tensor | None = None
    ) -> tuple[Any, ...]:
        first = torch.zeros(1, dtype=torch.long, device=x.device)
        q, k, v, *extra = self.project(x, first, v_first)
        with unwatched():
            y = attention.full_attention(q, k, v, scoring=self.scoring._replace(window=None))
        return self.out(y.transpose(1, 2).flatten(2)).to(x.dtype), (), *extra
