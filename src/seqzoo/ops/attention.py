"""Softmax attention, causal with a cache or to a whole source, and rotary positions.

B batch, H heads, T queries (the newest tokens), S >= T keys seen, K key size, W window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose
from seqzoo.ops.watch import watch


class Scoring(NamedTuple):
    """What decides the weights of causal attention beside the products of queries and keys.

    Attributes:
        window: W: a query sees its own key and the W - 1 before it; None: all before it.
        softcap: a score s becomes softcap * tanh(s / softcap) (Gemma 2, arXiv 2408.00118, section
            2); None: it stays.
        sinks: (H,): one more score in the softmax of each head, without a value, so that the
            weights of the keys sum to less than 1 (gpt-oss, arXiv 2508.10925, section 2.2).
        decay: (B, H, S), float64: c, the sums over time of log forget gates. The score of query t
            and key s gets c_t - c_s (Lin et al. 2025, arXiv 2503.02130).
    """

    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    decay: Tensor | None = None


PLAIN = Scoring()
Cached = tuple[Tensor, ...]  # the output of the new tokens; all keys and values
# What reads one token after a cache, where a step is recorded (`decoding.step`).
one_token_reader: ContextVar[Callable[..., Cached] | None] = ContextVar(
    "seqzoo_one_token_reader", default=None
)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scoring: Scoring = PLAIN, valid: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, where query t of T sees the keys up to S - T + t (Vaswani et al.
    2017, eq. 1).

    Args:
        q: (B, H, T, K).
        k, v: (B, G, S, K): the keys and values of the tokens read so far, the newest last; each of
            their G heads serves H / G heads of queries (Ainslie et al. 2023, arXiv 2305.13245).
        scoring: what else decides the weights.
        valid: (B, S), false at places that hold no key; those of the T new tokens hold one. None:
            all do.

    Returns:
        (B, H, T, K)
    """
    S = k.shape[-2]
    watch(
        lambda: causal_attention(q[:1], k[:1], _one_hot_values(v), *_of_first_row(scoring, valid))[
            0
        ]
    )
    k, v = _for_every_head(q, k, v)
    y: Tensor = choose("attention", q, S)(q, k, v, causal=True, valid=valid, scoring=scoring)
    return y


def attend_after(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, scoring: Scoring = PLAIN
) -> Cached:
    """`causal_attention` of new tokens to a cache and to themselves; and the cache after them.

    Args:
        q (B, H, T, K), k, v (B, G, T, K): of the new tokens; past_k, past_v: (B, G, S, K).
    """
    read = one_token_reader.get()
    if read is not None and q.shape[2] == 1:
        return read(q, k, v, (past_k, past_v), scoring)
    k, v = append(past_k, k), append(past_v, v)
    return causal_attention(q, k, v, scoring), k, v


def attend_within(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: tuple[Tensor, Tensor] | None,
    first: Tensor,
    scoring: Scoring,
) -> Cached:
    """`causal_attention` of new tokens within a window of W tokens; and the keys and values of the
    last W - 1, to go on from.

    Args:
        q (B, H, T, K), k, v (B, G, T, K): of the new tokens.
        past: keys and values (B, G, N, K) of the N tokens before these, where that many were read;
            None: there are none.
        first: (B,), position of the first new token.
    """
    assert scoring.window is not None
    read = one_token_reader.get()
    if read is not None and past is not None and q.shape[2] == 1:
        return read(q, k, v, past, scoring, first)
    valid, T, kept = None, q.shape[2], scoring.window - 1
    if past is not None:
        N = past[0].shape[2]
        valid = torch.arange(-N, T, device=q.device) >= -first[:, None]  # (B, N + T)
        k, v = (
            torch.cat((old.to(new.dtype), new), 2) for old, new in zip(past, (k, v), strict=True)
        )
    y = causal_attention(q, k, v, scoring, valid)
    missing, start = max(0, kept - k.shape[2]), max(0, k.shape[2] - kept)
    k, v = (
        F.pad(x[:, :, start:], (0, 0, missing, 0)) if missing else x[:, :, start:].clone()
        for x in (k, v)
    )
    return y, k, v


def forgetting_attention(
    q: Tensor, k: Tensor, v: Tensor, log_f: Tensor, past: Sequence[Tensor] | None
) -> tuple[Tensor, ...]:
    """`causal_attention` of new tokens to a cache and to themselves, where the score of query t and
    key s gets the sum of log f from token s + 1 to t; and keys, values and log f after them.

    Args:
        q, k, v (B, H, T, K), log_f (B, H, T, 1): of the new tokens.
        past: keys, values and log f of the tokens before; None: there are none.
    """
    cache = k, v, log_f
    read = one_token_reader.get()
    if past is None:
        cache = k.contiguous(), v.contiguous(), log_f.contiguous()
    elif read is not None and q.shape[2] == 1:
        return read(q, k, v, past, log_f=log_f)
    else:
        cache = append(past[0], k), append(past[1], v), append(past[2], log_f)
    scoring = Scoring(decay=cache[2][..., 0].double().cumsum(2))
    return causal_attention(q, cache[0], cache[1], scoring), *cache


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


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None, scoring: Scoring = PLAIN
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, where every query sees every valid key.

    Args:
        q: (B, H, T, K); k, v: (B, G, S, K), as for `causal_attention`; each row has at least one
            valid key.
        valid: (B, S); None: every key is valid.
        scoring: its cap and sinks.

    Returns:
        (B, H, T, K)
    """
    S = k.shape[-2]
    first = None if valid is None else valid[:1]
    one_hot = _one_hot_values
    watch(lambda: full_attention(q[:1], k[:1], one_hot(v), first, scoring)[0], over="source")
    k, v = _for_every_head(q, k.to(q.dtype), v.to(q.dtype))
    form = choose("attention", q, S)
    y: Tensor = form(q, k, v, causal=False, valid=valid, scoring=scoring)
    return y


def naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    valid: Tensor | None = None,
    scoring: Scoring = PLAIN,
) -> Tensor:
    """The definition. q (B, H, T, K), k and v (B, H, S, K), valid (B, S)."""
    seen = seen_keys(q.shape[-2], k.shape[-2], causal, scoring.window, valid, q.device)
    return weigh(q, k, v, seen, scoring)


def weigh(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scoring: Scoring) -> Tensor:
    """The definition for keys that are seen where `seen`, expanded to (B, H, T, S), is true."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, S)
    scores = capped(scores, scoring.softcap)
    if scoring.decay is not None:
        scores = scores + decay_between(q, scoring.decay)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    sinks = None if scoring.sinks is None else scoring.sinks[:, None, None]
    return weights_of(scores, sinks) @ v


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores of which none is larger than `softcap`; None: as they are."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def weights_of(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """The softmax of scores (..., T, S); sinks are one more score of each row, whose weight is left
    out, of a shape that expands to (..., T, 1)."""
    if sinks is None:
        return scores.softmax(-1)
    sinks = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    weights: Tensor = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    return weights


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    valid: Tensor | None = None,
    scoring: Scoring = PLAIN,
) -> Tensor:
    """By torch's `scaled_dot_product_attention`, whose is_causal aligns the mask top-left: right
    only where there is no cache. It has no cap and no sinks, so with these scores are computed. A
    text longer than the window is read in blocks."""
    (T, S), W = (q.shape[-2], k.shape[-2]), scoring.window
    if W is not None and T > W and scoring.decay is None:
        return in_blocks(q, k, v, valid, scoring)
    plain = valid is None and scoring.decay is None and (W is None or S <= W)
    if causal and plain and T == S and scoring.softcap is None and scoring.sinks is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
    return _by_sdpa(q, k, v, seen_keys(T, S, causal, W, valid, q.device), scoring)


def in_blocks(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, scoring: Scoring) -> Tensor:
    """Causal attention within a window of W keys, as many queries at a time: these see keys of
    their own block and of the one before it. Cost and memory grow with T W instead of T S."""
    (B, _, T, _), S, W = q.shape, k.shape[-2], scoring.window
    assert W is not None and scoring.decay is None
    past = min(S - T, W)  # keys before the first query that it may see
    missing, n = W - past, -(-T // W)
    after = n * W - T
    filled = torch.ones(1, S, dtype=torch.bool, device=q.device) if valid is None else valid
    filled = F.pad(F.pad(filled[:, S - T - past :], (missing, 0)), (0, after), value=True)
    k, v = (F.pad(x[:, :, S - T - past :], (0, 0, missing, after)) for x in (k, v))

    def pairs(x: Tensor) -> Tensor:
        """(B, H, (n + 1) W, K) as (B n, H, 2 W, K): every block after the one before it."""
        x = torch.unflatten(x, 2, (n + 1, W)).transpose(1, 2)  # (B, n + 1, H, W, K)
        return torch.cat((x[:, :-1], x[:, 1:]), 3).flatten(0, 1)

    queries = torch.unflatten(F.pad(q, (0, 0, 0, after)), 2, (n, W)).transpose(1, 2).flatten(0, 1)
    j = torch.arange(W, device=q.device)[:, None]
    age = j + W - torch.arange(2 * W, device=q.device)  # (W, 2 W)
    seen = (age >= 0) & (age < W) & pairs(filled.expand(B, -1)[:, None, :, None]).mT
    y = _by_sdpa(queries, pairs(k), pairs(v), seen, scoring._replace(window=None))
    return torch.unflatten(y, 0, (B, n)).transpose(1, 2).flatten(2, 3)[:, :, :T]


def _by_sdpa(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scoring: Scoring) -> Tensor:
    if scoring.softcap is not None or scoring.sinks is not None:
        return weigh(q, k, v, seen, scoring)
    if scoring.decay is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    bias = decay_between(q, scoring.decay)
    bias = bias if seen is None else bias.masked_fill(~seen, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def seen_keys(
    T: int, S: int, causal: bool, window: int | None, valid: Tensor | None, device: torch.device
) -> Tensor | None:
    """(B or 1, 1, T, S) or with T = 1 in place of it: whether query t sees key s, that is, if
    causal, s <= S - T + t, and is less than `window` tokens old. None: all see all."""
    seen = None
    if causal and (T > 1 or (window is not None and S > window)):
        age = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)
        seen = age >= 0 if window is None else (age >= 0) & (age < window)  # (T, S)
    if valid is None:
        return seen if seen is None else seen[None, None]
    valid = valid[:, None, None]
    return valid if seen is None else valid & seen


def decay_between(q: Tensor, c: Tensor) -> Tensor:
    """c_t - c_s (B, H, T, S), in the type of q (B, H, T, K). The difference is of float64, as c
    grows with the text."""
    return (c[:, :, -q.shape[2] :, None] - c[:, :, None]).to(q.dtype)


def _of_first_row(scoring: Scoring, valid: Tensor | None) -> tuple[Scoring, Tensor | None]:
    decay = None if scoring.decay is None else scoring.decay[:1]
    return scoring._replace(decay=decay), None if valid is None else valid[:1]


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
