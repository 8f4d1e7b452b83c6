"""Recurrences of a matrix state in C++. Each backward pass computes again what its forward pass did
not keep: the states between two of every SEGMENT tokens, and products of low rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.mamba2 import Weights as Mamba2Weights
from seqzoo.ops.mamba2 import split
from seqzoo.ops.matrix_state import Tokens
from seqzoo.ops.native import PARTS, backward_pass, call, expect, in_rows, run
from seqzoo.ops.rwkv7 import FASTEST_DECAY, Projections, Weights

SEGMENT = 64  # tokens between two states that are kept, as in the kernels


def matrix_state(
    tokens: Tokens,
    S: Tensor,
    u: Tensor | None,
    *,
    min_log_w: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token, the state of a head in the first-level cache. It reads no chunks, and tokens
    in bfloat16 as they are."""
    B, H, T, _ = tokens.v.shape
    tokens = tokens.each(lambda x: readable(x.expand(B, H, T, x.shape[-1]), S.dtype))
    u = None if u is None else in_rows(u.to(S.dtype))
    out: tuple[Tensor, Tensor] = run(_MatrixState, *tokens, u, in_rows(S))
    return out


class _MatrixState(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tokens, u, S = inputs
        q, _, v, log_w, a, _ = tokens
        sizes, training = _sizes(q, v, log_w), any(ctx.needs_input_grad)
        B, H, T, K, V, _ = sizes
        expect(S, B, H, K, V)
        y, end = S.new_empty(B, T, H, V).transpose(1, 2), torch.empty_like(S)
        read = S.new_empty(B, H, T, V) if training and a is not None else None  # b_t^T S_{t-1}
        kept = S.new_empty(B, H, -(-T // SEGMENT), K * V) if training else None
        into = *typed(y), end, read, kept
        call("matrix_state_forward", *sizes, S, u, *typed(*tokens), *into)
        if training:
            ctx.save_for_backward(*inputs, read, kept)
            ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor | None, of_end: Tensor | None) -> tuple[Any, ...]:
        *tokens, u, S, read, kept = ctx.saved_tensors
        q, _, v, log_w, _, _ = tokens
        to = [None if x is None else torch.empty_like(x) for x in tokens]
        if not ctx.needs_input_grad[3]:
            to[3] = None
        of_u = None if u is None else S.new_empty(len(q), *u.shape)  # for each row of the batch
        of_S = torch.empty_like(S)
        unread = of_y is None  # then no query has a gradient
        of_y = S.new_zeros(v.shape) if of_y is None else in_rows(of_y)
        of_end = torch.zeros_like(S) if of_end is None else in_rows(of_end)
        given = S, u, *typed(*tokens), *typed(of_y), of_end, read, kept
        call("matrix_state_backward", *_sizes(q, v, log_w), *given, *typed(*to), of_u, of_S)
        return (None if unread else to[0], *to[1:], None if of_u is None else of_u.sum(0), of_S)


def _sizes(q: Tensor, v: Tensor, log_w: Tensor) -> tuple[int, ...]:
    return *v.shape[:3], q.shape[-1], v.shape[-1], log_w.shape[-1]


def readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x with its last dimension contiguous, in a type that kernels for `dtype` read: bfloat16 too
    where that is float32."""
    half = x.dtype == torch.bfloat16 and dtype == torch.float32
    return in_rows(x if half else x.to(dtype))


def typed(*tensors: Tensor | None) -> Iterator[Tensor | int | None]:
    """Each tensor after a number: whether it is in bfloat16."""
    for x in tensors:
        yield from (int(x is not None and x.dtype == torch.bfloat16), x)


def rwkv7(
    given: Projections, S: Tensor, weights: Weights, *, eps: float, beta_max: float
) -> tuple[Tensor, Tensor]:
    """What the recurrence reads is made in it, token by token, and the output is in the type of the
    gate. Products of low rank are computed again in the backward pass."""
    rows = (given.r, given.k, given.v, given.v_first)
    r, k, v, first = (None if x is None else readable(x, S.dtype) for x in rows)
    low: list[Tensor | None] = []
    for one in given.low_rank():
        x = None if one is None else readable(one.x, S.dtype)
        low += [x, None if one is None or x is None else one.W.to(x.dtype)]
    parts = torch.stack([x.flatten().to(S.dtype) for x in weights if x is not None])
    numbers = eps, FASTEST_DECAY, beta_max - 1.0
    out: tuple[Tensor, Tensor] = run(_RWKV7, numbers, r, k, v, first, parts, in_rows(S), *low)
    return out


class _RWKV7(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: tuple[float, ...], *inputs: Any) -> tuple[Tensor, Tensor]:
        r, k, v, first, weights, S, *low = inputs
        tokens = _rwkv7_tokens(r, k, v, first, low)
        (B, T, D), (H, K), training = r.shape, S.shape[1:3], any(ctx.needs_input_grad)
        expect(S, B, H, D // H, D // H)
        out, end = tokens[5].new_empty(B, T, D), torch.empty_like(S)
        y = S.new_empty(B, H, T, K) if training else None  # of the recurrence
        read = S.new_empty(B, H, T, K) if training else None  # b_t^T S_{t-1}
        kept = S.new_empty(B, H, -(-T // SEGMENT), K * K) if training else None
        ctx.head = B, H, T, K, *numbers
        into = *typed(out), end, *typed(y), read, kept
        call("rwkv7_forward", *ctx.head, S, weights, *typed(*tokens), *into)
        if training:
            ctx.save_for_backward(y, read, kept, *inputs)
            ctx.set_materialize_grads(False)
        return out, end

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_out: Tensor | None, of_end: Tensor | None) -> tuple[Any, ...]:
        y, read, kept, r, k, v, first, weights, S, *low = ctx.saved_tensors
        tokens = _rwkv7_tokens(r, k, v, first, low)
        of_out = torch.zeros_like(tokens[5]) if of_out is None else in_rows(of_out)
        of_end = torch.zeros_like(S) if of_end is None else in_rows(of_end)
        to = [None if x is None else torch.empty_like(x) for x in tokens]
        of_weights = weights.new_zeros(len(S), *weights.shape)  # for each row of the batch
        of_S = torch.empty_like(S)
        given = S, weights, *typed(*tokens), *typed(of_out), of_end, *typed(y), read, kept
        call("rwkv7_backward", *ctx.head, *given, *typed(*to), of_weights, of_S)
        of_r, of_w, of_k, of_v, of_a, of_gate, of_share, of_first = to
        of_low: list[Tensor | None] = []
        for x, W, g in zip(low[::2], low[1::2], (of_w, of_a, of_gate, of_share), strict=True):
            of_low += [None, None] if g is None else [g @ W.T, x.flatten(0, 1).T @ g.flatten(0, 1)]
        return None, of_r, of_k, of_v, of_first, of_weights.sum(0), of_S, *of_low


def _rwkv7_tokens(
    r: Tensor, k: Tensor, v: Tensor, first: Tensor | None, low: Sequence[Any]
) -> tuple[Any, ...]:
    """The projections in the order of the kernel, those of low rank given as pairs of x and W."""
    pairs = zip(low[::2], low[1::2], strict=True)
    w, a, gate, share = (None if x is None else x @ W for x, W in pairs)
    return r, w, k, v, a, gate, share, first


def delta_net(
    qkv: Tensor, beta: Tensor, S: Tensor, log_w: Tensor | None, *, beta_max: float
) -> tuple[Tensor, Tensor]:
    """What the recurrence reads is made in it, token by token."""
    log_w = None if log_w is None else in_rows(log_w)
    given = readable(qkv, S.dtype), readable(beta, S.dtype), in_rows(S), log_w
    out: tuple[Tensor, Tensor] = run(_DeltaNet, float(beta_max), *given)
    return out


class _DeltaNet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, beta_max: float, *inputs: Any) -> tuple[Tensor, Tensor]:
        (qkv, beta, S, log_w), training = inputs, any(ctx.needs_input_grad)
        (B, H, K, V), T = S.shape, qkv.shape[1]
        expect(S, len(qkv), beta.shape[2], K, qkv.shape[2] // beta.shape[2] - 2 * K)
        y, end = S.new_empty(B, T, H, V).transpose(1, 2), torch.empty_like(S)
        read = S.new_empty(B, H, T, V) if training else None  # b_t^T S_{t-1}
        kept = S.new_empty(B, H, -(-T // SEGMENT), K * V) if training else None
        channels = 0 if log_w is None else log_w.shape[2] // H  # with a decay of their own
        ctx.head = B, H, T, K, V, channels, beta_max
        into = *typed(y), end, read, kept
        call("delta_net_forward", *ctx.head, S, *typed(qkv, beta, log_w), *into)
        if training:
            ctx.save_for_backward(*inputs, read, kept)
            ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor | None, of_end: Tensor | None) -> tuple[Any, ...]:
        qkv, beta, S, log_w, read, kept = ctx.saved_tensors
        B, H, T, _, V = ctx.head[:5]
        of_y = S.new_zeros(B, H, T, V) if of_y is None else in_rows(of_y)
        of_end = torch.zeros_like(S) if of_end is None else in_rows(of_end)
        to = [None if x is None else torch.empty_like(x) for x in (qkv, beta, log_w)]
        of_S = torch.empty_like(S)
        given = S, *typed(qkv, beta, log_w, of_y), of_end, read, kept
        call("delta_net_backward", *ctx.head, *given, *typed(*to), of_S)
        return None, *to[:2], of_S, to[2]


def mamba2(
    projected: Tensor, seen: Tensor, h: Tensor, weights: Mamba2Weights
) -> tuple[Tensor, Tensor]:
    """Of a token x, B and C are kept after the convolution, and y before the gate."""
    taps, *rest = (w.to(h.dtype) for w in weights)
    given = (
        readable(projected, h.dtype),
        in_rows(seen.to(h.dtype)),
        in_rows(h),
        taps.T.contiguous(),
        *rest,
    )
    out: tuple[Tensor, Tensor] = run(_Mamba2, *given)
    return out


class _Mamba2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        seen, h, taps, bias, *heads, scale = inputs
        (B, H, N, P), T, training = h.shape, projected.shape[1], any(ctx.needs_input_grad)
        taken, channels = taps.shape
        expect(seen, len(projected), taken - 1, channels)
        expect(h, len(projected), len(heads[0]), (channels - H * P) // 2, P)
        xBC, y = h.new_empty(B, T, seen.shape[2]), h.new_empty(B, T, H * P)
        kept = h.new_empty(B, H, -(-T // SEGMENT), N * P) if training else None
        out, end = projected.new_empty(y.shape), torch.empty_like(h)
        ctx.sizes = B, T, H, N, P, PARTS, torch.finfo(h.dtype).eps
        weights = taps, bias, torch.stack(heads), scale
        given = *typed(*split(projected, h)), seen, h, *weights, *typed(xBC, y), kept
        call("mamba2_forward", *ctx.sizes, *given, *typed(out), end, of=h.dtype)
        if training:
            ctx.save_for_backward(projected, seen, h, *weights, xBC, y, kept)
            ctx.set_materialize_grads(False)
        return out, end

    @staticmethod
    @backward_pass
    def backward(
        ctx: Any, of_out: Tensor | None, of_end: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        projected, seen, h, *weights, xBC, y, kept = ctx.saved_tensors
        B, T, H, N = ctx.sizes[:4]
        unread = of_out is None  # then skip and the norm have no gradient
        of_out = projected.new_zeros(y.shape) if of_out is None else in_rows(of_out)
        of_end = torch.zeros_like(h) if of_end is None else in_rows(of_end)
        to = [torch.empty_like(x) for x in (projected, seen, h)]
        # for each row of the batch, or part of the tokens
        parts = [h.new_zeros(n, *x.shape) for n, x in zip((B, B, B, PARTS), weights, strict=True)]
        inside = torch.empty_like(y), torch.empty_like(xBC), h.new_empty(B, H, T, 2 * N)
        given = *typed(*split(projected, h)), seen, h, *weights, *typed(xBC, y), kept
        into = *typed(*split(to[0], h)), *to[1:], *parts, *typed(*inside)
        call("mamba2_backward", *ctx.sizes, *given, *typed(of_out), of_end, *into, of=h.dtype)
        taps, bias, heads, scale = (x.sum(0) for x in parts)
        dt_bias, A_log, skip = heads.unbind(0)
        return *to, taps, bias, dt_bias, A_log, *((None, None) if unread else (skip, scale))
