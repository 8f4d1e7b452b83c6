"""Recurrences of a matrix state, for the whole family of linear attention, in one chunked form.

B batch, H heads, T time, K key size, V value size, C tokens a chunk, N chunks. Per head,

    S_t = diag(w_t) S_{t-1} + a_t (b_t^T S_{t-1}) + k_t v_t^T        S (K, V)
    y_t = q_t^T S_t,   or with a bonus u   y_t = q_t^T (S_{t-1} + diag(u) k_t v_t^T)

| | w | a, b | source |
|---|---|---|---|
| linear attention | 1 | | arXiv 2006.16236, eq. 18 |
| retention | constant, a head | | 2307.08621, eq. 6 |
| Mamba-2 (SSD) | a head and token | | 2405.21060, eq. 2 |
| gated linear attention | a channel and token | | 2312.06635, eq. 3 |
| RWKV-5, with u | constant, a channel | | 2404.05892, section 4.1.2 |
| RWKV-6, with u | a channel and token | | 2404.05892, section 4.2.2 |
| DeltaNet, writing beta k | 1 | -beta k, k | 2406.06484, section 2.2 |
| RWKV-7 | a channel and token | -kappa a, kappa | 2503.14456, eq. 17 |

Inside a chunk everything is matrix products: with G the sum of log w from the chunk's start,
S_t = e^{G_t} S_0 + sum_{s <= t} e^{G_t - G_s} (a_s x_s + k_s v_s^T), and x_t = b_t^T S_{t-1} is the
solution of a triangular system (the UT transform of 2406.06484, section 3.2). From chunk to chunk
only S goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.attention import rotate
from seqzoo.ops.registry import choose
from seqzoo.ops.watch import watch

BLOCK = 8  # tokens that meet pair by pair where decays may be of any size
LIMIT = 40.0  # e^40 times e^40 is still a float32
FORGOTTEN = -200.0  # lower bound of log decays: e^-200 of a number is lost in any float32 sum


class Tokens(NamedTuple):
    """The inputs of the recurrence, in the shapes that `matrix_state` documents; time is
    dimension 2."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_w: Tensor
    a: Tensor | None
    b: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        """The same with a function applied to every tensor."""
        a, b = (None if x is None else change(x) for x in (self.a, self.b))
        return Tokens(change(self.q), change(self.k), change(self.v), change(self.log_w), a, b)

    def wide(self, S: Tensor) -> Tokens:
        """The same in the type of S, with decays that are not too fast to be summed."""
        tokens = self.each(lambda x: x.to(S.dtype))
        return tokens._replace(log_w=tokens.log_w.clamp(min=FORGOTTEN))

    def column(self, t: int) -> Tokens:
        """Token t, each vector a column: (B, H, K or V, 1)."""
        return self.each(lambda x: x[:, :, t, :, None])


def matrix_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    S: Tensor,
    log_w: Tensor | None = None,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    u: Tensor | None = None,
    min_log_w: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The outputs of T tokens, and the state after the last.

    Args:
        q, k: (B, H, T, K), or (B, 1, T, K) for all heads; v: (B, H, T, V). Tokens may be in fewer
            bits than S; all sums are in its type.
        S: (B, H, K, V), the state before the first token; float32 or wider.
        log_w: log of the decay, at most 0; anything that broadcasts to (B, H, T, K), a last
            dimension of 1 being a decay of the whole head. None: nothing is forgotten.
        a, b: (B, H, T, K), both or neither.
        u: (H, K), the weight of the current token's own k v^T in its output.
        min_log_w: a lower bound of log_w, where one is known: slow decays need cheaper products.
        chunk: tokens in a chunk, at most; 16 where a bound is known and would be too fast for more.
            None: 64, or 32 with a and b, the fastest on a CPU (`scripts/measure_ops.py`).

    Returns:
        y (B, H, T, V), and S, both in the type of S.
    """
    T = q.shape[2]
    if log_w is None:
        log_w, min_log_w = q.new_zeros(1, 1, 1, 1), 0.0
    log_w = log_w.expand(*log_w.shape[:2], T, log_w.shape[-1])
    tokens = Tokens(q, k, v, log_w, a, b)
    watch(lambda: weights(tokens, u))
    run = choose("matrix_state", S, T)
    out: tuple[Tensor, Tensor] = run(tokens, S, u, min_log_w=min_log_w, chunk=chunk)
    return out


def turned_matrix_state(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, log_w: Tensor, **more: Any
) -> tuple[Tensor, Tensor]:
    """`matrix_state` with queries and keys turned to their positions (rotary; K even). S is kept
    relative to the next token, so that it holds no position."""
    T = q.shape[2]
    positions = torch.arange(T, device=q.device)[None]
    y, S = matrix_state(rotate(q, positions), rotate(k, positions), v, S, log_w, **more)
    back = torch.full((1, S.shape[-1]), -T, device=q.device)  # a key at p is now one at p - T
    return y, rotate(S.transpose(-1, -2), back).transpose(-1, -2)


def weights(tokens: Tokens, u: Tensor | None) -> Tensor:
    """The weight of each value in each output, from the empty state, for the first row of the
    batch: (H, T, T)."""
    dtype = torch.promote_types(tokens.q.dtype, torch.float32)
    q, k, v, log_w, a, b = tokens.each(lambda x: x[:1].to(dtype))
    (_, H, T, _), K = v.shape, q.shape[-1]
    values = torch.eye(T).to(q).expand(1, H, T, T)
    return matrix_state(q, k, values, q.new_zeros(1, H, K, T), log_w, a=a, b=b, u=u)[0][0]


def naive(
    tokens: Tokens,
    S: Tensor,
    u: Tensor | None,
    *,
    min_log_w: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, token by token. `min_log_w` and `chunk` are for forms that read chunks."""
    tokens = tokens.wide(S)
    ys = []
    for t in range(tokens.q.shape[2]):
        q, k, v, log_w, a, b = tokens.column(t)
        before, new = S, k * v.mT
        S = log_w.exp() * before
        if a is not None and b is not None:
            S = S + a * (b.mT @ before)
        S = S + new
        seen = S if u is None else before + u[:, :, None] * new
        ys.append((q.mT @ seen).squeeze(2))
    return torch.stack(ys, 2), S


def blocked(
    tokens: Tokens,
    S: Tensor,
    u: Tensor | None,
    *,
    min_log_w: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Matrix products over chunks of C tokens, and one shorter chunk of what is left over. Fetches
    nothing from the device, as C does not depend on the data."""
    tokens, T = tokens.wide(S), tokens.q.shape[2]
    C, slow = _chunk_size(tokens.log_w, min_log_w, chunk or (64 if tokens.a is None else 32))
    whole = T - T % C
    if whole in (0, T):
        return _chunks(tokens, S, u, min(C, T), slow)
    y, S = _chunks(tokens.each(lambda x: x[:, :, :whole]), S, u, C, slow)
    rest, S = _chunks(tokens.each(lambda x: x[:, :, whole:]), S, u, T - whole, slow)
    return torch.cat((y, rest), 2), S


def chunked(
    tokens: Tokens,
    S: Tensor,
    u: Tensor | None,
    *,
    min_log_w: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`blocked` where reading a number costs nothing: most decays are slow enough for cheaper
    products."""
    if min_log_w is None:
        min_log_w = max(FORGOTTEN, float(tokens.log_w.detach().amin()))
    return blocked(tokens, S, u, min_log_w=min_log_w, chunk=chunk)


def _chunk_size(log_w: Tensor, min_log_w: float | None, largest: int) -> tuple[int, bool]:
    """C, at most `largest`, and whether it is certain that no channel decays by more than e^-80
    inside a chunk (`slow` decay), which costs float32 one of its seven digits."""
    if min_log_w is None:
        return largest, False
    sizes = {largest} if log_w.shape[-1] == 1 else {largest, min(16, largest)}
    slow = [C for C in sizes if -min_log_w * C <= 2 * LIMIT]
    return max(slow, default=largest), bool(slow)


def _chunks(
    tokens: Tokens, S: Tensor, u: Tensor | None, C: int, slow: bool
) -> tuple[Tensor, Tensor]:
    """Chunks of C tokens, C dividing T; `slow` if no channel decays by more than e^-80 in one."""
    q, k, v, log_w, a, b = tokens.each(lambda x: torch.unflatten(x, 2, (-1, C)))  # (B, H, N, C, K)
    if not slow:  # float64, as small differences of large sums matter
        log_w = log_w.double()
    G = log_w.cumsum(3)  # log of the decay from the chunk's start to t
    before = G - log_w  # and to t - 1
    end = G[:, :, :, -1:]
    reading = G if u is None else before
    seen = torch.ones(C, C, dtype=torch.bool, device=q.device).tril(0 if u is None else -1)
    # A chunk as an affine map of the state before it: y = reads S + own, and
    # S <- kept * S + moves S + gained.
    to_end = (end - G).to(q.dtype).exp()
    kept = end.to(q.dtype).exp().mT.expand(-1, -1, q.shape[2], -1, -1)  # (B, H, N, K or 1, 1)
    reads = q * reading.to(q.dtype).exp()
    moves = None
    if a is None or b is None:
        ((qk,),) = _decayed([q], [reading], [seen], [k], G, slow)
        own, gained = qk @ v, (k * to_end).mT @ v
    else:
        (qk, qa), (bk, ba) = _decayed(
            [q, b], [reading, before], [seen, seen.tril(-1)], [k, a], G, slow
        )
        right = torch.cat((bk @ v, b * before.to(q.dtype).exp()), -1)
        x = torch.linalg.solve_triangular(-ba, right, upper=False, unitriangular=True)
        V, K = v.shape[-1], b.shape[-1]
        of_v, of_S = (qa @ x).split([V, K], -1)
        own, reads = qk @ v + of_v, reads + of_S
        of_v, moves = ((a * to_end).mT @ x).split([V, K], -1)
        gained = (k * to_end).mT @ v + of_v
    if u is not None:
        own = own + (q * u[:, None, None] * k).sum(-1, keepdim=True) * v

    starts = []  # unbind below, as the gradient of a slice would be a whole tensor of zeros
    moved = [None] * q.shape[2] if moves is None else moves.unbind(2)
    for keep, gain, move in zip(kept.unbind(2), gained.unbind(2), moved, strict=True):
        starts.append(S)
        S = keep * S + gain if move is None else keep * S + gain + move @ S
    y = own + reads @ torch.stack(starts, 2)
    return y.flatten(2, 3), S


def _decayed(
    xs: list[Tensor],
    reads: list[Tensor],
    masks: list[Tensor],
    ys: list[Tensor],
    G: Tensor,
    slow: bool,
) -> list[tuple[Tensor, ...]]:
    """For every x and every y a matrix (.., C, C): the sum over channels of x_t y_s e^(read_t -
    G_s) where the mask of x is true at (t, s), else 0.

    All of them are one matrix product, whose exponential is split at half of the chunk's decay.
    """
    C = G.shape[-2]
    if slow and G.shape[-1] > 1:
        half = G[..., -1:, :].detach() / 2  # cancels, so has no gradient
        written = (half - G).exp()
        left = torch.cat([x * (g - half).exp() for x, g in zip(xs, reads, strict=True)], -2)
        right = torch.cat([y * written for y in ys], -2)
        seen = torch.cat(masks).repeat(1, len(ys)).to(left.dtype)
        product = (left @ right.transpose(-1, -2)) * seen  # finite everywhere, so 0 where not seen
    elif G.shape[-1] == 1:  # one decay for all channels
        lags = [(g - G.transpose(-1, -2)).to(xs[0].dtype) for g in reads]
        decays = [
            torch.where(seen, lag, -torch.inf).exp() for seen, lag in zip(masks, lags, strict=True)
        ]
        product = torch.cat(xs, -2) @ torch.cat(ys, -2).transpose(-1, -2)
        product = product * torch.cat([torch.cat(decays, -2)] * len(ys), -1)
    else:
        product = torch.cat(
            [_in_blocks(x, g, seen, ys, G) for x, g, seen in zip(xs, reads, masks, strict=True)], -2
        )
    return [torch.split(row, C, -1) for row in torch.split(product, C, -2)]


def _in_blocks(x: Tensor, read: Tensor, seen: Tensor, ys: list[Tensor], G: Tensor) -> Tensor:
    """One row of `_decayed` for decays of any size, as (.., C, C len(ys)): no exponent is above 0.

    Tokens of one block of BLOCK meet pair by pair; a block meets those before it in a matrix
    product, whose exponential is split at the block's edge (arXiv 2312.06635, section 4.3).
    """
    C, dtype = G.shape[-2], x.dtype
    rows = []
    for start in range(0, C, BLOCK):
        block = slice(start, start + BLOCK)
        x_, read_ = x[..., block, :], read[..., block, :]
        lag = (read_[..., :, None, :] - G[..., None, block, :]).to(dtype)
        mask = seen[block, block, None]
        weight = x_[..., :, None, :] * torch.where(mask, lag, -torch.inf).exp()
        inside = [(weight * y[..., None, block, :]).sum(-1) for y in ys]
        if start:
            edge = G[..., start - 1 : start, :]
            left = x_ * (read_ - edge).to(dtype).exp()
            faded = (edge - G[..., :start, :]).to(dtype).exp()
            before = [left @ (y[..., :start, :] * faded).mT for y in ys]
            inside = [torch.cat(pair, -1) for pair in zip(before, inside, strict=True)]
        after = (0, C - inside[0].shape[-1])
        rows.append(torch.cat([F.pad(part, after) for part in inside], -1))
    return torch.cat(rows, -2)
