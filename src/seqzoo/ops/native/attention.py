"""Softmax attention in C++: no scores are kept, and no block of keys that no query sees is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.attention import PLAIN, Scoring, naive
from seqzoo.ops.native import backward_pass, call, in_rows, run


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    valid: Tensor | None = None,
    scoring: Scoring = PLAIN,
) -> Tensor:
    """q (B, H, T, K), k (B, H, S, K), v (B, H, S, V), valid (B, S); sums are in float32."""
    if q.dtype == torch.bfloat16 and (q.shape[-1] % 2 or v.shape[-1] % 2):  # it reads pairs
        return naive(q, k, v, causal=causal, valid=valid, scoring=scoring)
    inputs = (in_rows(x.to(q.dtype)) for x in (q, k, v))
    valid = None if valid is None else in_rows(valid)
    decay = None if scoring.decay is None else in_rows(scoring.decay)
    sinks = None if scoring.sinks is None else scoring.sinks.to(_type_of_sums(q))
    options = causal, scoring.window if causal else None, scoring.softcap
    y: Tensor = run(_Attention, *inputs, valid, decay, sinks, options)
    return y


def _type_of_sums(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor | None,
        decay: Tensor | None,
        sinks: Tensor | None,
        options: tuple[bool, int | None, float | None],
    ) -> Tensor:
        B, H, T, K = q.shape
        causal, window, softcap = options
        sizes = B, H, T, k.shape[2], K, v.shape[3], int(causal), window or 0
        y = q.new_empty(B, T, H, v.shape[3]).transpose(1, 2)  # as the next product reads it
        training = any(ctx.needs_input_grad)
        lse = (
            q.new_empty(B, H, T, dtype=_type_of_sums(q)) if training else None
        )  # log of the sum of the weights
        inputs = q, k, v, valid, decay, sinks
        call("attention_forward", *sizes, *inputs, float(softcap or 0), y, lse)
        if training:
            ctx.save_for_backward(*inputs, y, lse)
            ctx.sizes, ctx.softcap = sizes, float(softcap or 0)
        return y

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, y, lse = ctx.saved_tensors
        q, k, v, valid, decay, sinks = inputs
        to = [x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v)]
        of_c = None if decay is None else torch.empty_like(decay)
        given = *inputs, ctx.softcap, in_rows(of_y), y, lse
        call("attention_backward", *ctx.sizes, *given, *to, of_c)
        if sinks is None:
            return *to, None, of_c, None, None
        weights = (sinks[:, None] - lse).exp()  # (B, H, T), of the sinks
        shared = weights * (of_y.to(lse.dtype) * y.to(lse.dtype)).sum(-1)
        return *to, None, of_c, -shared.sum((0, 2)), None
