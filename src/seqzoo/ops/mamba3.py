"""The recurrence of Mamba-3 (Lahoti et al. 2026, arXiv 2603.15569): a matrix state whose pairs of
rows turn, written to by the exponential-trapezoidal rule.

B batch, H heads, T time, N numbers of a key, P of a value, A <= N / 2 angles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops import matrix_state
from seqzoo.ops.registry import choose
from seqzoo.ops.watch import unwatched, watch


class Tokens(NamedTuple):
    """What the recurrence reads, in the type of the state."""

    q: Tensor  # (B, H, T, N): C
    k: Tensor  # (B, H, T, N): B
    v: Tensor  # (B, H, T, P): x
    log_a: Tensor  # (B, H, T): dt A, at most 0
    before: Tensor  # (B, H, T): (1 - lambda) dt, the weight of the token before
    own: Tensor  # (B, H, T): lambda dt, the weight of the token itself
    angle: Tensor  # (B, H, T, A): dt theta, by which the state turns back


def trapezoidal(
    tokens: Tokens, S: Tensor, k: Tensor, v: Tensor, skip: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs of T tokens, and the state after the last.

        S_t = a_t R_t (S_{t-1} + before_t k_{t-1} v_{t-1}^T) + own_t k_t v_t^T
        y_t = q_t S_t + skip v_t

    R_t turns the pair of rows (i, i + A) back by angle i of token t; rows from 2 A on do not turn.
    That is the paper's complex state as real numbers.

    Args:
        S: (B, H, N, P), the state before the first token; float32 or wider.
        k, v: (B, H, N) and (B, H, P), those of the token before the first.
        skip: (H,).

    Returns:
        y (B, H, T, P), and S, both in the type of S.
    """
    watch(lambda: _weights(tokens))
    with unwatched():
        run = choose("trapezoidal", S, tokens.q.shape[2])
        out: tuple[Tensor, Tensor] = run(tokens, S, k, v, skip[:, None].to(S.dtype))
    return out


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (i, i + A) of the last dimension turned by A angles; the rest as it is."""
    A = cos.shape[-1]
    if not A:
        return x
    a, b, rest = torch.split(x, [A, A, x.shape[-1] - 2 * A], -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), -1)


def naive(tokens: Tokens, S: Tensor, k: Tensor, v: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    ys = []
    for t in range(tokens.q.shape[2]):
        q, now, value, log_a, before, own, angle = (x[:, :, t] for x in tokens)
        S = S + (before[..., None] * k)[..., None] * v[:, :, None]
        S = turn(S.mT, angle.cos()[:, :, None], -angle.sin()[:, :, None]).mT
        S = log_a.exp()[..., None, None] * S + (own[..., None] * now)[..., None] * value[:, :, None]
        ys.append((q[:, :, None] @ S).squeeze(2) + skip * value)
        k, v = now, value
    return torch.stack(ys, 2), S


def turned(tokens: Tokens, S: Tensor, k: Tensor, v: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """By `matrix_state`, once.

    Queries and keys are turned by the sum of all angles so far instead of the state, which is
    turned at the end. Both writes of k_t v_t^T, at t and at t + 1, are one: the state that t + 1
    reads has it with the weight own_t + before_{t+1}. Token t itself reads the state before its own
    write, and its own key and value besides; so no output depends on a later token.
    """
    q, keys, values, log_a, before, own, angle = tokens
    S = S + (before[:, :, 0, None] * k)[..., None] * v[:, :, None]
    turns = angle.double().cumsum(2)  # float64, as sums grow large
    turns = (turns - 2 * math.pi * (turns / (2 * math.pi)).round()).to(S.dtype)
    cos, sin = turns.cos(), turns.sin()
    seen = own * (q * keys).sum(-1) + skip  # weight of the token's own value
    written = own + F.pad(before[:, :, 1:], (0, 1))
    q = turn(q, cos, sin) * log_a.exp()[..., None]
    keys = turn(keys, cos, sin) * written[..., None]
    nothing = q.new_zeros(q.shape[1], q.shape[3])  # of a token's own write in its output
    y, S = matrix_state.matrix_state(q, keys, values, S, log_a[..., None], u=nothing)
    return torch.addcmul(y, seen[..., None], values), turn(S.mT, cos[:, :, -1:], -sin[:, :, -1:]).mT


def _weights(tokens: Tokens) -> Tensor:
    """The weight of each value in each output, from the empty state, for the first row of the
    batch: (H, T, T)."""
    first = Tokens(*(x[:1] for x in tokens))
    (_, H, T, N), q = first.q.shape, first.q
    first = first._replace(v=torch.eye(T).to(q).expand(1, H, T, T))
    empty = (q.new_zeros(size) for size in ((1, H, N, T), (1, H, N), (1, H, T), (H,)))
    return trapezoidal(first, *empty)[0][0]
