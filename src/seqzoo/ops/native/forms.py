"""Forms of operations in C++. Each backward pass computes again what its forward pass did not keep:
the states between two of every SEGMENT tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqzoo.ops.local import naive_causal_conv, naive_shift_mixes
from seqzoo.ops.matrix_state import Tokens
from seqzoo.ops.native import call
from seqzoo.ops.rwkv7 import FASTEST_DECAY, Projections, Weights
from seqzoo.ops.wkv4 import WKVState

SEGMENT = 32  # as in the kernels
MOST = 8  # mixes or taps that a kernel takes


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
    tokens = tokens.each(lambda x: _readable(x.expand(B, H, T, x.shape[-1]), S.dtype))
    u = None if u is None else _in_rows(u.to(S.dtype))
    out: tuple[Tensor, Tensor] = _MatrixState.apply(*tokens, u, _in_rows(S))  # type: ignore[no-untyped-call]
    return out


class _MatrixState(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tokens, u, S = inputs
        q, _, v, log_w, a, _ = tokens
        sizes, training = _sizes(q, v, log_w), any(ctx.needs_input_grad)
        B, H, T, K, V, _ = sizes
        y, end = S.new_empty(B, T, H, V).transpose(1, 2), torch.empty_like(S)
        read = S.new_empty(B, H, T, V) if training and a is not None else None  # b_t^T S_{t-1}
        kept = S.new_empty(B, H, -(-T // SEGMENT), K * V) if training else None
        into = *_typed(y), end, read, kept
        call("matrix_state_forward", *sizes, S, u, *_typed(*tokens), *into)
        if training:
            ctx.save_for_backward(*inputs, read, kept)
            ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor | None, of_end: Tensor | None) -> tuple[Any, ...]:
        *tokens, u, S, read, kept = ctx.saved_tensors
        q, _, v, log_w, _, _ = tokens
        to = [None if x is None else torch.empty_like(x) for x in tokens]
        if not ctx.needs_input_grad[3]:
            to[3] = None
        of_u = None if u is None else S.new_empty(len(q), *u.shape)  # for each row of the batch
        of_S = torch.empty_like(S)
        unread = of_y is None  # then no query has a gradient
        of_y = S.new_zeros(v.shape) if of_y is None else _in_rows(of_y)
        of_end = torch.zeros_like(S) if of_end is None else _in_rows(of_end)
        given = S, u, *_typed(*tokens), *_typed(of_y), of_end, read, kept
        call("matrix_state_backward", *_sizes(q, v, log_w), *given, *_typed(*to), of_u, of_S)
        return (None if unread else to[0], *to[1:], None if of_u is None else of_u.sum(0), of_S)


def _sizes(q: Tensor, v: Tensor, log_w: Tensor) -> tuple[int, ...]:
    return *v.shape[:3], q.shape[-1], v.shape[-1], log_w.shape[-1]


def _readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x with its last dimension contiguous, in a type that kernels for `dtype` read: bfloat16 too
    where that is float32."""
    half = x.dtype == torch.bfloat16 and dtype == torch.float32
    return _in_rows(x if half else x.to(dtype))


def _typed(*tensors: Tensor | None) -> Iterator[Tensor | int | None]:
    """Each tensor after a number: whether it is in bfloat16."""
    for x in tensors:
        yield from (int(x is not None and x.dtype == torch.bfloat16), x)


def rwkv7(given: Projections, S: Tensor, weights: Weights, *, eps: float) -> tuple[Tensor, Tensor]:
    """What the recurrence reads is made in it, token by token, and the output is in the type of the
    gate."""
    *tokens, share, first = (None if x is None else _readable(x, S.dtype) for x in given)
    parts = (x.flatten().to(S.dtype) for x in weights if x is not None)
    inputs = (*tokens, share, first, torch.stack([*parts]), _in_rows(S))
    out: tuple[Tensor, Tensor] = _RWKV7.apply(eps, *inputs)  # type: ignore[no-untyped-call]
    return out


class _RWKV7(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tokens, weights, S = inputs
        (B, T, D), (H, K), training = tokens[0].shape, S.shape[1:3], any(ctx.needs_input_grad)
        out, end = tokens[5].new_empty(B, T, D), torch.empty_like(S)
        y = S.new_empty(B, H, T, K) if training else None  # of the recurrence
        read = S.new_empty(B, H, T, K) if training else None  # b_t^T S_{t-1}
        kept = S.new_empty(B, H, -(-T // SEGMENT), K * K) if training else None
        ctx.head = B, H, T, K, eps, FASTEST_DECAY
        into = *_typed(out), end, *_typed(y), read, kept
        call("rwkv7_forward", *ctx.head, S, weights, *_typed(*tokens), *into)
        if training:
            ctx.save_for_backward(*inputs, y, read, kept)
            ctx.set_materialize_grads(False)
        return out, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor | None, of_end: Tensor | None) -> tuple[Any, ...]:
        *tokens, weights, S, y, read, kept = ctx.saved_tensors
        of_out = torch.zeros_like(tokens[5]) if of_out is None else _in_rows(of_out)
        of_end = torch.zeros_like(S) if of_end is None else _in_rows(of_end)
        to = [None if x is None else torch.empty_like(x) for x in tokens]
        of_weights = weights.new_zeros(len(S), *weights.shape)  # for each row of the batch
        of_S = torch.empty_like(S)
        given = S, weights, *_typed(*tokens), *_typed(of_out), of_end, *_typed(y), read, kept
        call("rwkv7_backward", *ctx.head, *given, *_typed(*to), of_weights, of_S)
        return None, *to, of_weights.sum(0), of_S


def delta_net(qkv: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """What the recurrence reads is made in it, token by token."""
    given = _readable(qkv, S.dtype), _readable(beta, S.dtype), _in_rows(S)
    out: tuple[Tensor, Tensor] = _DeltaNet.apply(*given)  # type: ignore[no-untyped-call]
    return out


class _DeltaNet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        (B, H, K, _), T, training = S.shape, qkv.shape[1], any(ctx.needs_input_grad)
        y, end = S.new_empty(B, T, H, K).transpose(1, 2), torch.empty_like(S)
        read = S.new_empty(B, H, T, K) if training else None  # b_t^T S_{t-1}
        kept = S.new_empty(B, H, -(-T // SEGMENT), K * K) if training else None
        given = S, *_typed(qkv, beta)
        call("delta_net_forward", B, H, T, K, *given, *_typed(y), end, read, kept)
        if training:
            ctx.save_for_backward(qkv, beta, S, read, kept)
            ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor | None, of_end: Tensor | None) -> tuple[Tensor, ...]:
        qkv, beta, S, read, kept = ctx.saved_tensors
        (B, H, K, _), T = S.shape, qkv.shape[1]
        of_y = S.new_zeros(B, H, T, K) if of_y is None else _in_rows(of_y)
        of_end = torch.zeros_like(S) if of_end is None else _in_rows(of_end)
        to = torch.empty_like(qkv), torch.empty_like(beta), torch.empty_like(S)
        given = S, *_typed(qkv, beta, of_y), of_end, read, kept
        call("delta_net_backward", B, H, T, K, *given, *_typed(*to[:2]), to[2])
        return to


def wkv4(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    """Token by token, some channels at once; exact for any keys."""
    rows = map(_in_rows, (k, v, w, u, *state))
    y, end = _WKV4.apply(*rows)  # type: ignore[no-untyped-call]
    return y, WKVState(*end.unbind(0))


class _WKV4(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        k = inputs[0]
        B, T, D = k.shape
        training = any(ctx.needs_input_grad)
        y, end = k.new_empty(B, T, D), k.new_empty(3, B, D)
        kept = k.new_empty(B, -(-T // SEGMENT), 3, D) if training else None
        call("wkv4_forward", B, T, D, *inputs, y, end, kept)
        if training:
            ctx.save_for_backward(*inputs, kept, end)
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor, of_end: Tensor) -> tuple[Tensor, ...]:
        *inputs, kept, end = ctx.saved_tensors
        k = inputs[0]
        B, T, D = k.shape
        of_k, of_v, of_start = k.new_empty(B, T, D), k.new_empty(B, T, D), k.new_empty(3, B, D)
        of_w, of_u = k.new_empty(B, D), k.new_empty(B, D)  # for each row of the batch
        given = (kept, _in_rows(of_y), _in_rows(of_end), end)
        call("wkv4_backward", B, T, D, *inputs, *given, of_k, of_v, of_w, of_u, of_start)
        return of_k, of_v, of_w.sum(0), of_u.sum(0), *of_start.unbind(0)


def linear_scan(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """Token by token, some channels at once."""
    states: Tensor = _LinearScan.apply(*map(_in_rows, (a, b, h)))  # type: ignore[no-untyped-call]
    return states


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        states = b.new_empty(b.shape)
        call("linear_scan_forward", *b.shape, a, b, h, states)
        ctx.save_for_backward(a, h, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_states: Tensor) -> tuple[Tensor, ...]:
        a, h, states = ctx.saved_tensors
        to = states.new_empty(a.shape), states.new_empty(a.shape), states.new_empty(h.shape)
        call("linear_scan_backward", *a.shape, a, h, states, _in_rows(of_states), *to)
        return to


def token_shift(x: Tensor, last: Tensor, mixes: Tensor) -> tuple[Tensor, ...]:
    """All mixes from one reading of x, and under autocast in 16 bits."""
    half = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    to = torch.get_autocast_dtype("cpu") if half else x.dtype
    if half and to != torch.bfloat16:
        return naive_shift_mixes(x, last, mixes)
    out: tuple[Tensor, ...] = _TokenShift.apply(_in_rows(x), _in_rows(last), mixes, to)  # type: ignore[no-untyped-call]
    return out


class _TokenShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, last: Tensor, mixes: Tensor, to: torch.dtype) -> Any:
        out = tuple(x.new_empty(x.shape, dtype=to) for _ in mixes)
        call("token_shift_forward" + _HALF[to], len(mixes), *x.shape, x, last, mixes, *out)
        ctx.save_for_backward(x, last, mixes)
        ctx.to = to
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        x, last, mixes = ctx.saved_tensors
        of_mixes = mixes.new_empty(len(x), *mixes.shape)  # for each row of the batch
        of_x, of_last = x.new_empty(x.shape), x.new_empty(last.shape)
        rows = [None if g is None else _in_rows(g) for g in given]
        into = (of_x, of_last, of_mixes)
        name = "token_shift_backward" + _HALF[ctx.to]
        call(name, len(mixes), *x.shape, x, last, mixes, *into, *rows)
        return of_x, of_last, of_mixes.sum(0), None


def causal_conv(x: Tensor, before: Tensor, taps: Tensor) -> Tensor:
    """Without a copy of x beside the tokens before it."""
    if len(taps) > MOST:
        return naive_causal_conv(x, before, taps)
    y: Tensor = _CausalConv.apply(*map(_in_rows, (x, before, taps)))  # type: ignore[no-untyped-call]
    return y


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor, taps: Tensor) -> Tensor:
        y = x.new_empty(x.shape)
        call("causal_conv_forward", *x.shape, len(taps), x, before, taps, y)
        ctx.save_for_backward(x, before, taps)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, ...]:
        x, before, taps = ctx.saved_tensors
        to = x.new_empty(x.shape), x.new_empty(before.shape)
        of_taps = x.new_empty(len(x), *taps.shape)  # for each row of the batch
        given = (x, before, taps, _in_rows(of_y))
        call("causal_conv_backward", *x.shape, len(taps), *given, *to, of_taps)
        return *to, of_taps.sum(0)


_HALF = {torch.float32: "", torch.float64: "", torch.bfloat16: "_to_bfloat16"}


def _in_rows(x: Tensor) -> Tensor:
    """x with its last dimension contiguous, as the kernels read it."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def squared_relu(x: Tensor) -> Tensor:
    """In one pass over x, and one back."""
    y: Tensor = _SquaredReLU.apply(x.contiguous())  # type: ignore[no-untyped-call]
    return y


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        call("squared_relu_forward", x.numel(), x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        of_x = torch.empty_like(x)
        call("squared_relu_backward", x.numel(), x, of_y.contiguous(), of_x)
        return of_x


def head_norm(
    y: Tensor, scale: Tensor, shift: Tensor, *, gate: Tensor | None, eps: float, centred: bool
) -> Tensor:
    """In one pass over y, and one back; the output is in the type of the gate."""
    gate = None if gate is None else _readable(gate, y.dtype)
    inputs = eps, centred, torch.stack((scale, shift)), _in_rows(y), gate
    out: Tensor = _HeadNorm.apply(*inputs)  # type: ignore[no-untyped-call]
    return out


class _HeadNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, eps: float, centred: bool, weights: Tensor, y: Tensor, gate: Tensor | None
    ) -> Tensor:
        B, H, T, V = y.shape
        out = (y if gate is None else gate).new_empty(B, T, H * V)
        ctx.head = B, H, T, V, int(centred), eps
        call("head_norm_forward", *ctx.head, weights, *_typed(y, gate, out))
        ctx.save_for_backward(weights, y, gate)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        weights, y, gate = ctx.saved_tensors
        to = torch.empty_like(y), None if gate is None else torch.empty_like(gate)
        of_weights = weights.new_empty(len(y), *weights.shape)  # for each row of the batch
        given = weights, *_typed(y, gate, _in_rows(of_out))
        call("head_norm_backward", *ctx.head, *given, *_typed(*to), of_weights)
        return None, None, of_weights.sum(0), *to
