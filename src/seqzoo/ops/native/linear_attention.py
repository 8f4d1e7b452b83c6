"""Linear attention in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.linear_attention import EPS
from seqzoo.ops.native import backward_pass, call, expect, in_rows, run
from seqzoo.ops.native.matrix_states import SEGMENT, readable, typed


def linear_attention(
    qkv: Tensor,
    S: Tensor,
    log_w: Tensor,
    *,
    min_log_w: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token: of a token its projections, its output and what that was divided by are kept.
    It reads no chunks."""
    given = readable(qkv, S.dtype), in_rows(S), log_w[:, None]
    y, S = run(_LinearAttention, *given)
    return y.to(qkv.dtype), S


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, S: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor]:
        (B, H, K, V), T, training = S.shape, qkv.shape[1], any(ctx.needs_input_grad)
        expect(S, len(qkv), H, qkv.shape[2] // (3 * H), V)
        y, end = qkv.new_empty(B, T, H * K), torch.empty_like(S)
        total = S.new_empty(B, H, T, 1) if training else None
        kept = S.new_empty(B, H, -(-T // SEGMENT), K * V) if training else None
        given = S, log_w, *typed(qkv, y)
        call("linear_attention_forward", B, H, T, K, EPS, *given, total, end, kept)
        if training:
            ctx.save_for_backward(qkv, S, log_w, y, total, kept)
            ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor | None, of_end: Tensor | None) -> tuple[Any, ...]:
        qkv, S, log_w, y, total, kept = ctx.saved_tensors
        (B, H, K, _), T = S.shape, qkv.shape[1]
        of_y = torch.zeros_like(y) if of_y is None else in_rows(of_y)
        of_end = torch.zeros_like(S) if of_end is None else in_rows(of_end)
        to = torch.empty_like(qkv), torch.empty_like(S)
        given = S, log_w, *typed(qkv, y), total, *typed(of_y), of_end, kept
        call("linear_attention_backward", B, H, T, K, EPS, *given, *typed(to[0]), to[1])
        return *to, None
