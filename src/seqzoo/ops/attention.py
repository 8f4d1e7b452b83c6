"""Softmax attention, causal with a cache or to a whole source, and rotary positions.

B batch, H heads, T queries (the newest tokens), S >= T keys seen, K key size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose
from seqzoo.ops.watch import watch

Cached = tuple[Tensor, Tensor, Tensor]  # the output of the new tokens; all keys and values
# What reads one token after a cache, where a step is recorded (`decoding.step`).
one_token_reader: ContextVar[Callable[..., Cached] | None] = ContextVar(
    "seqzoo_one_token_reader", default=None
)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, where query t of T sees the keys up to S - T + t (Vaswani et al.
    2017, eq. 1).

    Args:
        q: (B, H, T, K).
        k, v: (B, G, S, K): the keys and values of every token read so far, the newest last; each of
            their G heads serves H / G heads of queries (Ainslie et al. 2023, arXiv 2305.13245).

    Returns:
        (B, H, T, K)
    """
    S = k.shape[-2]
    watch(lambda: causal_attention(q[:1], k[:1], _one_hot_values(v))[0])
    k, v = _for_every_head(q, k, v)
    y: Tensor = choose("attention", q, S)(q, k, v, causal=True)
    return y


def attend_after(q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor) -> Cached:
    """`causal_attention` of new tokens to a cache and to themselves; and the cache after them.

    Args:
        q (B, H, T, K), k, v (B, G, T, K): of the new tokens; past_k, past_v: (B, G, S, K).
    """
    read = one_token_reader.get()
    if read is not None and q.shape[2] == 1:
        return read(q, k, v, past_k, past_v)
    k, v = append(past_k, k), append(past_v, v)
    return causal_attention(q, k, v), k, v


class _Room(NamedTuple):
    """Memory for more entries than a cache has, and how many it holds."""

    memory: Tensor  # (B, G, capacity, K)
    filled: list[int]  # one number, which all views of the memory share


def append(past: Tensor, new: Tensor) -> Tensor:
    """past (B, G, S, K) with new (B, G, T, K) after it: (B, G, S + T, K).

    For one token and without gradients the result has room for more after it, twice as much each
    time it is used up, so that the next call only writes `new`. `past` keeps its values: a second
    continuation of the same `past` finds the room taken, and copies.
    """
    (B, G, S, K), T = past.shape, new.shape[2]
    if T > 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat((past.to(new.dtype), new), 2)
    room: _Room | None = getattr(past, "room", None)
    fits = room is not None and room.filled[0] == S and S + T <= room.memory.shape[2]
    if room is None or not fits or past.dtype != new.dtype:
        room = _Room(new.new_empty(B, G, max(64, 2 * (S + T)), K), [0])
        room.memory[:, :, :S] = past
    room.memory[:, :, S : S + T] = new
    room.filled[0] = S + T
    after = room.memory[:, :, : S + T]
    after.room = room  # type: ignore[attr-defined]
    return after


def full_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, where every query sees every valid key.

    Args:
        q: (B, H, T, K); k, v: (B, G, S, K), as for `causal_attention`; each row has at least one
            valid key.
        valid: (B, S); None: every key is valid.

    Returns:
        (B, H, T, K)
    """
    S = k.shape[-2]
    first = None if valid is None else valid[:1]
    watch(lambda: full_attention(q[:1], k[:1], _one_hot_values(v), first)[0], over="source")
    k, v = _for_every_head(q, k.to(q.dtype), v.to(q.dtype))
    y: Tensor = choose("attention", q, S)(q, k, v, causal=False, valid=valid)
    return y


def naive(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, valid: Tensor | None = None) -> Tensor:
    """The definition. q (B, H, T, K), k and v (B, H, S, K), valid (B, S)."""
    T, S = q.shape[-2], k.shape[-2]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, S)
    if causal and T > 1:
        scores = scores + bottom_right_mask(T, S, scores)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], float("-inf"))
    weights: Tensor = scores.softmax(-1)
    return weights @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, valid: Tensor | None = None) -> Tensor:
    """By torch's `scaled_dot_product_attention`, whose is_causal aligns the mask top-left: right
    only where there is no cache."""
    T, S = q.shape[-2], k.shape[-2]
    if causal and T in (1, S):
        return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
    if causal:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bottom_right_mask(T, S, q))
    mask = None if valid is None else valid[:, None, None]  # (B, 1, 1, S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _one_hot_values(v: Tensor) -> Tensor:
    """Values (1, G, S, S) whose weighted sums are the weights themselves."""
    G, S = v.shape[1:3]
    return torch.eye(S).to(v).expand(1, G, S, S)


def _for_every_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, G, S, K), each repeated for the H / G heads of queries it serves."""
    if q.shape[1] == k.shape[1]:
        return k, v
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return k, v


def bottom_right_mask(T: int, S: int, like: Tensor) -> Tensor:
    """(T, S): 0 where key s may be seen by query t, that is s <= S - T + t, else minus infinity."""
    mask = torch.full((T, S), float("-inf"), dtype=like.dtype, device=like.device)
    return mask.triu(S - T + 1)


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding: turns pair i of x by positions * base^(-2i/K) (Su et al. 2021, eq.
    34).

    Args:
        x: (B, H, T, K) with even K; pair i is (x[i], x[i + K/2]).
        positions: (B or 1, T), whole numbers; may be negative.
    """
    half = x.shape[-1] // 2
    exponent = torch.arange(half, device=x.device, dtype=torch.float64) / half
    # float64, as positions grow large: (B, 1, T, K/2)
    angles = positions[:, None, :, None].double() * base**-exponent
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
