"""Softmax attention in C++: no scores are kept, and no block of keys that no query sees is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.attention import PLAIN, Scoring, naive, sdpa
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
    if (scoring.softcap, scoring.sinks, scoring.decay) != (None, None, None):
        return sdpa(q, k, v, causal=causal, valid=valid, scoring=scoring)
    valid = None if valid is None else in_rows(valid)
    window = scoring.window or 0 if causal else 0
    y: Tensor = run(_Attention, *(in_rows(x.to(q.dtype)) for x in (q, k, v)), valid, causal, window)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, causal: bool, window: int
    ) -> Tensor:
        B, H, T, K = q.shape
        sizes = B, H, T, k.shape[2], K, v.shape[3], int(causal), window
        y = q.new_empty(B, T, H, v.shape[3]).transpose(1, 2)  # as the next product reads it
        sums = torch.float64 if q.dtype == torch.float64 else torch.float32
        training = any(ctx.needs_input_grad)
        lse = (
            q.new_empty(B, H, T, dtype=sums) if training else None
        )  # log of the sum of the weights
        call("attention_forward", *sizes, q, k, v, valid, y, lse)
        if training:
            ctx.save_for_backward(q, k, v, valid, y, lse)
            ctx.sizes = sizes
        return y

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, valid, y, lse = ctx.saved_tensors
        to = [x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v)]
        call("attention_backward", *ctx.sizes, q, k, v, valid, in_rows(of_y), y, lse, *to)
        return *to, None, None, None
