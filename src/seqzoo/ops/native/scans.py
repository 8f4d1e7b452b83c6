"""Recurrences of channels in C++: RWKV-4's wkv, the linear scan, and the RG-LRU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.native import backward_pass, call, expect, in_rows, run
from seqzoo.ops.rg_lru import LEAST, log_decay
from seqzoo.ops.wkv4 import WKVState

SEGMENT = 32  # tokens between two states of wkv4 that are kept, as in its kernel
_OF_HALF = {torch.float32: "", torch.float64: "", torch.bfloat16: "_of_bfloat16"}


def wkv4(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState, r: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """Token by token, some channels at once; exact for any keys. Where k, v and r are in bfloat16
    they are read so, and so is y written; the sums are float32."""
    half = r is not None and {k.dtype, v.dtype, r.dtype} == {torch.bfloat16}
    half &= w.dtype == torch.float32
    tokens = [x if x is None else in_rows(x if half else x.to(w.dtype)) for x in (k, v, r)]
    y, end = run(_WKV4, *map(in_rows, (w, u, *state)), *tokens)
    return y if r is None else y.to(r.dtype), WKVState(*end.unbind(0))


class _WKV4(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        w, k = inputs[0], inputs[5]
        B, T, D = k.shape
        training = any(ctx.needs_input_grad)
        for each in inputs[2:5]:
            expect(each, B, D)
        y, end = k.new_empty(B, T, D), w.new_empty(3, B, D)
        kept = w.new_empty(B, -(-T // SEGMENT), 3, D) if training else None
        call("wkv4_forward" + _OF_HALF[k.dtype], B, T, D, *inputs, y, end, kept)
        if training:
            ctx.save_for_backward(*inputs, kept, end)
        return y, end

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor, of_end: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, kept, end = ctx.saved_tensors
        w, k, r = inputs[0], inputs[5], inputs[7]
        B, T, D = k.shape
        of_w, of_u, of_start = w.new_empty(B, D), w.new_empty(B, D), w.new_empty(3, B, D)  # by row
        of_k, of_v = k.new_empty(B, T, D), k.new_empty(B, T, D)
        of_r = None if r is None else k.new_empty(B, T, D)
        given = (kept, in_rows(of_end), end, of_w, of_u, of_start)
        name = "wkv4_backward" + _OF_HALF[k.dtype]
        call(name, B, T, D, *inputs, *given, in_rows(of_y), of_k, of_v, of_r)
        return of_w.sum(0), of_u.sum(0), *of_start.unbind(0), of_k, of_v, of_r


def linear_scan(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """Token by token, some channels at once."""
    states: Tensor = run(_LinearScan, *map(in_rows, (a, b, h)))
    return states


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        expect(h, len(b), *b.shape[2:])
        states = b.new_empty(b.shape)
        call("linear_scan_forward", *b.shape, a, b, h, states)
        ctx.save_for_backward(a, h, states)
        return states

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_states: Tensor) -> tuple[Tensor, ...]:
        a, h, states = ctx.saved_tensors
        to = states.new_empty(a.shape), states.new_empty(a.shape), states.new_empty(h.shape)
        call("linear_scan_backward", *a.shape, a, h, states, in_rows(of_states), *to)
        return to


def rg_lru(x: Tensor, gates: Tensor, decay: Tensor, h: Tensor) -> Tensor:
    """Token by token, some channels at once; of a token x, the gates and h are kept."""
    half = gates.dtype == torch.bfloat16 and h.dtype == torch.float32
    gates = gates if half else gates.to(h.dtype)
    states: Tensor = run(_RGLRU, *map(in_rows, (x.to(h.dtype), gates, log_decay(decay, h), h)))
    return states


class _RGLRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, rate: Tensor, h: Tensor) -> Tensor:
        states, ctx.sizes = x.new_empty(x.shape), (*gates.shape[:3], gates.shape[3] // 2, LEAST)
        expect(h, len(x), *x.shape[2:])
        name = "rg_lru_forward" + _OF_HALF[gates.dtype]
        call(name, *ctx.sizes, x, gates, rate, h, states)
        ctx.save_for_backward(x, gates, rate, h, states)
        return states

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_states: Tensor) -> tuple[Tensor, ...]:
        x, gates, rate, h, states = ctx.saved_tensors
        of_x, of_gates, of_h = torch.empty_like(x), torch.empty_like(gates), torch.empty_like(h)
        of_rate = torch.empty_like(h)  # for each row of the batch
        given = x, gates, rate, h, states, in_rows(of_states)
        name = "rg_lru_backward" + _OF_HALF[gates.dtype]
        call(name, *ctx.sizes, *given, of_x, of_gates, of_rate, of_h)
        return of_x, of_gates, of_rate.sum(0), of_h
