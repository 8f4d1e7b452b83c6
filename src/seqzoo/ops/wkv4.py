"""The wkv operator of RWKV-4 (Peng et al. 2023, arXiv 2305.13048, eq. 16 and appendix D).

B batch, T time, D channels, C tokens a chunk, N chunks. Per channel, with decay w < 0 and bonus u:

    y_t = (a_{t-1} + e^{u + k_t} v_t) / (b_{t-1} + e^{u + k_t})
    a_t = e^w a_{t-1} + e^{k_t} v_t        b_t = e^w b_{t-1} + e^{k_t}

a and b are kept as (a e^-p, b e^-p, p), p_t = max(p_{t-1} + w, k_t), so that no exponential
overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor

from seqzoo.ops.registry import choose, record
from seqzoo.ops.tensors import float32_or_wider
from seqzoo.ops.watch import watch

CHUNK = 32
EMPTY = -1e38  # p of the empty state: e^p is zero, and p + w stays finite
LIMIT = 80.0  # e^-80 is still a normal float32


class WKVState(NamedTuple):
    """The accumulators after the last token, each (B, D) and float32 or wider."""

    aa: Tensor
    bb: Tensor
    pp: Tensor

    def initial(self) -> WKVState:
        """The state before the first token, for as many rows: sums of nothing."""
        zeros = torch.zeros_like(self.aa)
        return WKVState(zeros, zeros, torch.full_like(zeros, EMPTY))


Form = Callable[..., tuple[Tensor, WKVState]]


def wkv4(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState, r: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """Weighted averages of v, by exponential keys that decay with distance.

    Args:
        k, v: (B, T, D); w: (D,), negative, and u: (D,), float32 or wider.
        r: (B, T, D), the receptance, whose sigmoid multiplies the averages; None: nothing does.

    Returns:
        y (B, T, D), in the type of r, or of w where there is none; and the state after the last
        token.
    """
    watch(lambda: _weights(k[:1].to(w.dtype), w, u))
    form: Form = choose("wkv4", k, k.shape[1])
    return form(k, v, w, u, state, r)


def _gated(form: Form) -> Form:
    """A form that knows no receptance, and the receptance after it."""

    @wraps(form)
    def gated(
        k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState, r: Tensor | None = None
    ) -> tuple[Tensor, WKVState]:
        y, state = form(k.to(w.dtype), v.to(w.dtype), w, u, state)
        return (y if r is None else y.to(r.dtype) * r.sigmoid()), state

    return gated


def empty_state(k: Tensor) -> WKVState:
    """The accumulators before the first token, for keys k (B, T, D)."""
    (first,) = float32_or_wider(k[:, 0])
    return WKVState(first, first, first).initial()


@_gated
def chunked(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """Matrix products over chunks of CHUNK tokens, and one shorter chunk of what is left over."""
    T = k.shape[1]
    whole = T - T % CHUNK
    if whole in (0, T):
        return _chunked(k, v, w, u, state)
    y0, state = _chunked(k[:, :whole], v[:, :whole], w, u, state)
    y1, state = _chunked(k[:, whole:], v[:, whole:], w, u, state)
    return torch.cat((y0, y1), 1), state


def _weights(k: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """The weight of each value s in each output t, from the empty state, for k (1, T, D):
    (D, T, T)."""
    _, T, D = k.shape
    values = (
        torch.eye(T).to(k)[..., None].expand(T, T, D)
    )  # in row s of the batch only value s is 1
    k = k.expand(T, T, D)
    y, _ = wkv4(k, values, w, u, empty_state(k))
    return y.permute(2, 1, 0)  # (s, t, D) -> (D, t, s)


@_gated
def naive(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """The definition, token by token."""
    a, b, p = state
    ys = []
    for kt, vt in zip(k.unbind(1), v.unbind(1), strict=True):
        top = torch.maximum(p, u + kt)
        old, new = (p - top).exp(), (u + kt - top).exp()
        ys.append((old * a + new * vt) / (old * b + new))
        top = torch.maximum(p + w, kt)
        old, new = (p + w - top).exp(), (kt - top).exp()
        a, b, p = old * a + new * vt, old * b + new, top
    return torch.stack(ys, 1), WKVState(a, b, p)


@_gated
def scan(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """An associative scan in log2 T steps, as the recurrence is linear in (a, b); exact for any
    keys."""
    a, b, p = v, torch.ones_like(v), k
    span = 1  # every position holds the sum over the last `span` tokens
    while span < k.shape[1]:
        p_old = p[:, :-span] + span * w
        top = torch.maximum(p[:, span:], p_old)
        old, new = (p_old - top).exp(), (p[:, span:] - top).exp()
        a = torch.cat((a[:, :span], old * a[:, :-span] + new * a[:, span:]), 1)
        b = torch.cat((b[:, :span], old * b[:, :-span] + new * b[:, span:]), 1)
        p = torch.cat((p[:, :span], top), 1)
        span *= 2
    steps = torch.arange(1, k.shape[1] + 1, device=k.device, dtype=k.dtype)[:, None]
    p_state = state.pp[:, None] + steps * w  # the incoming state, decayed to every token
    top = torch.maximum(p, p_state)
    old, new = (p_state - top).exp(), (p - top).exp()
    a, b, p = old * state.aa[:, None] + new * a, old * state.bb[:, None] + new * b, top

    before = [torch.cat((s[:, None], x[:, :-1]), 1) for s, x in zip(state, (a, b, p), strict=True)]
    top = torch.maximum(before[2], u + k)
    old, new = (before[2] - top).exp(), (u + k - top).exp()
    y = (old * before[0] + new * v) / (old * before[1] + new)
    return y, WKVState(a[:, -1], b[:, -1], p[:, -1])


def _chunked(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState
) -> tuple[Tensor, WKVState]:
    """Whole chunks of C = min(CHUNK, T) tokens. As w does not depend on the data, the recurrence
    of a channel inside a chunk is one C x C Toeplitz matrix for the whole batch.

    The sums of a chunk are relative to its largest key. Where the exponents inside one chunk span
    more than float32 does, `scan` runs instead.
    """
    B, T, D = k.shape
    C = min(CHUNK, T)
    N = T // C
    fixed_k, fixed_w = k.detach(), w.detach()  # scales cancel in y: no gradient passes through them
    peak = fixed_k.reshape(B, N, C, D).amax(2)  # (B, N, D)
    scales = [state.pp.detach()]
    for n in range(N):
        scales.append(torch.maximum(scales[-1] + C * fixed_w, peak[:, n]))
    scale = torch.stack(scales[:-1], 1)  # (B, N, D): of the state at the start of each chunk
    top = torch.maximum(scale, peak)
    if (top - fixed_k.reshape(B, N, C, D).amin(2)).amax() > LIMIT:
        record("wkv4", "scan")
        return scan(k, v, w, u, state)

    # Channel first, so that a channel's matrix meets its tokens without another copy.
    kc = k.reshape(B, N, C, D).permute(3, 0, 1, 2)  # (D, B, N, C)
    vc = v.reshape(B, N, C, D).permute(3, 0, 1, 2)
    weight = (kc - top.permute(2, 0, 1)[..., None]).exp()
    x = torch.stack((weight * vc, weight))  # (2, D, B, N, C)

    time = torch.arange(C, device=k.device, dtype=k.dtype)
    to_end = (w[:, None] * (C - 1 - time)).exp()  # (D, C)
    gained = (x * to_end[:, None, None]).sum(-1).permute(3, 0, 2, 1)  # (N, 2, B, D)
    carried = (
        torch.stack((state.aa, state.bb)) * (state.pp - scales[0]).exp()
    )  # (2, B, D); the factor is 1
    starts = []
    for n in range(N):
        starts.append(carried * (scale[:, n] - top[:, n]).exp())
        kept = (scales[n] + C * w - scales[n + 1]).exp()
        carried = kept * carried + (top[:, n] - scales[n + 1]).exp() * gained[n]
    start = torch.stack(starts).permute(3, 1, 2, 0)  # (D, 2, B, N)

    lag = time[:, None] - time - 1  # (C, C)
    exponent = torch.where(lag >= 0, lag * w[:, None, None], float("-inf"))  # (D, t, s)
    exponent = torch.where(lag == -1, u[:, None, None], exponent)
    inside = x.permute(1, 0, 2, 3, 4).reshape(D, 2 * B * N, C) @ exponent.exp().transpose(1, 2)
    across = start.reshape(D, 2 * B * N, 1) * (w[:, None] * time).exp()[:, None]
    numerator, denominator = (inside + across).reshape(D, 2, B, N, C).unbind(1)
    y = (numerator / denominator).permute(1, 2, 3, 0).reshape(B, T, D)

    # The state as the recurrence would leave it: relative to the running maximum of the decayed
    # keys.
    ahead = torch.arange(T - 1, -1, -1, device=k.device, dtype=k.dtype)[:, None]
    pp = torch.maximum(state.pp + T * w, (k + ahead * w).amax(1))
    aa, bb = carried * (scales[-1] - pp).exp()
    return y, WKVState(aa, bb, pp)
