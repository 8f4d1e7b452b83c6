"""Softmax attention with a cache of fixed size: a multi-state RNN whose states are M (Oren et al.
2024, arXiv 2401.06104).

B batch, H heads of queries, G heads of keys and values, T new tokens, M slots, K key size.

A query attends to the M slots and to its own token. Then, of these M + 1, the one with the lowest
priority is dropped, which may be the token itself:

| policy | priority | source |
|---|---|---|
| window | the token's position | |
| sinks | the same, but the first four are never dropped | arXiv 2309.17453 |
| tova | the weight that the last query gave it, mean over heads | arXiv 2401.06104, section 3.2 |
| h2o | the sum of all its weights, a head; the newest M / 2 are kept | arXiv 2306.14048, alg. 1 |
| random | a fixed random number: the cache is then a sample of all tokens read | |

Keys stay turned to the positions at which they were read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqzoo.config.values import N_SINKS
from seqzoo.ops.attention import PLAIN, Scoring, capped, weights_of


class CachePolicy(NamedTuple):
    """What a bounded cache keeps.

    Attributes:
        name: of the table above.
        size: M.
        reading: `tokens`: tokens are dropped one by one, so that the split of a text into chunks
            makes no difference; `prompt`: a chunk attends to all of itself, then the cache is cut
            once, as published implementations read their prompts.
    """

    name: str
    size: int
    reading: str


class BoundedCache(NamedTuple):
    """Slots in the order in which their tokens were read, empty ones first."""

    k: Tensor  # (B, G, M, K)
    v: Tensor  # (B, G, M, K)
    slot: Tensor  # (B, G, M): position of the token; -1: empty
    score: Tensor  # (B, G, M): sum of the attention weights of the token so far, float32
    position: Tensor  # (B,): of the next token

    def accumulated(self) -> tuple[Tensor, ...]:
        """The leaves that sum over time; keys and values keep their dtype."""
        return (self.score,)

    def initial(self) -> BoundedCache:
        """The cache before the first token, for as many rows: empty slots."""
        k, v, score, position = map(torch.zeros_like, (self.k, self.v, self.score, self.position))
        return BoundedCache(k, v, torch.full_like(self.slot, -1), score, position)


def empty(policy: CachePolicy, k: Tensor) -> BoundedCache:
    """The cache before the first token, with the device and dtype of k (B, G, T, K)."""
    B, G, _, K = k.shape
    zeros = k.new_zeros(B, G, policy.size, K)
    slot = torch.full((B, G, policy.size), -1, device=k.device)
    score = torch.zeros(B, G, policy.size, device=k.device)
    return BoundedCache(zeros, zeros, slot, score, slot.new_zeros(B))


def attend(
    policy: CachePolicy,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: BoundedCache,
    scoring: Scoring = PLAIN,
) -> tuple[Tensor, BoundedCache]:
    """The outputs of T tokens, and the cache after the last.

    Args:
        q: (B, H, T, K); k, v: (B, G, T, K), where G divides H.
        scoring: its cap and sinks.

    Returns:
        (B, H, T, K), and the cache.
    """
    if policy.reading == "prompt":
        return _attend_and_cut(policy, q, k, v, cache, scoring)
    ys = []
    for t in range(q.shape[2]):
        one = slice(t, t + 1)
        token = q[:, :, one], k[:, :, one], v[:, :, one]
        y, cache = _attend_and_cut(policy, *token, cache, scoring)
        ys.append(y)
    return torch.cat(ys, 2), cache


def _attend_and_cut(
    policy: CachePolicy, q: Tensor, k: Tensor, v: Tensor, cache: BoundedCache, scoring: Scoring
) -> tuple[Tensor, BoundedCache]:
    (B, H, T, K), G = q.shape, k.shape[1]
    k, v = torch.cat((cache.k.to(k.dtype), k), 2), torch.cat((cache.v.to(v.dtype), v), 2)
    new = cache.position[:, None] + torch.arange(T, device=q.device)  # (B, T)
    slot = torch.cat((cache.slot, new[:, None].expand(B, G, T)), 2)  # (B, G, M + T)

    queries = torch.unflatten(q, 1, (G, H // G)) * K**-0.5
    scores = queries @ k[:, :, None].transpose(-1, -2)  # (B, G, H / G, T, M + T)
    hidden = (slot[:, :, None] < 0) | (slot[:, :, None] > new[:, None, :, None])
    scores = capped(scores, scoring.softcap).masked_fill(hidden[:, :, None], -torch.inf)
    sinks = None if scoring.sinks is None else scoring.sinks.view(G, H // G, 1, 1)
    weights = weights_of(scores, sinks)
    y = (weights @ v[:, :, None]).flatten(1, 2)

    got = weights.detach().float().sum(2)  # (B, G, T, M + T)
    score = torch.cat((cache.score, cache.score.new_zeros(B, G, T)), 2) + got.sum(2)
    kept = _priority(policy, slot, score, got[:, :, -1]).topk(policy.size).indices.sort(-1).values
    rows = kept[..., None].expand(-1, -1, -1, K)
    return y, BoundedCache(
        k.gather(2, rows),
        v.gather(2, rows),
        slot.gather(2, kept),
        score.gather(2, kept),
        cache.position + T,
    )


def _priority(policy: CachePolicy, slot: Tensor, score: Tensor, last: Tensor) -> Tensor:
    """(B, G, S): the lowest is dropped first; an empty slot before any token."""
    if policy.name == "tova":
        priority = last.mean(1, keepdim=True).expand_as(last)
    elif policy.name == "h2o":
        recent = slot > slot[:, :, -1:] - policy.size // 2
        priority = score.masked_fill(recent, torch.inf)
    elif policy.name == "random":
        priority = torch.sin(slot.double() * 12.9898).mul(43758.5453).frac().abs()
    else:
        priority = slot.double()
        if policy.name == "sinks":
            priority = priority.masked_fill(slot < N_SINKS, torch.inf)
    return priority.masked_fill(slot < 0, -torch.inf)
