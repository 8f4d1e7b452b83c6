"""Softmax attention, causal with a cache or to a whole source, and rotary positions.

B batch, H heads, T queries (the newest tokens), S >= T keys seen, K key size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose
from seqzoo.ops.watch import watch


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
