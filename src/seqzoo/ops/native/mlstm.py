"""The matrix memory of mLSTM in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.mlstm import LEAST, Gates, scaled
from seqzoo.ops.native import backward_pass, call, expect, in_rows, run
from seqzoo.ops.native.matrix_states import SEGMENT, readable, typed


def mlstm(
    mixed: Tensor, x: Tensor, gates: Gates, S: Tensor, m: Tensor, blocks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token: of a token what it is made of, its output and q . n are kept."""
    log_i, log_f, ms = scaled(gates, m)
    W = blocks.to(S.dtype).permute(0, 3, 1, 2).flatten(2)  # (3, 4, E), by the number read
    W = torch.stack((W[0], W[1] * S.shape[2] ** -0.5, W[2]))
    given = readable(mixed, S.dtype), readable(x, S.dtype), W, log_i, log_f, ms, in_rows(S)
    y, S = run(_MLSTM, *given)
    return y, S, ms[:, -1].clone()


class _MLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        mixed, x, W, *gates, S = inputs
        (B, H, K, V), T, training = S.shape, x.shape[1], any(ctx.needs_input_grad)
        expect(S, len(mixed), H, mixed.shape[2] // H, V)
        y, end = S.new_empty(B, T, H, K).transpose(1, 2), torch.empty_like(S)
        sums = S.new_empty(B, H, T, 1) if training else None
        kept = S.new_empty(B, H, -(-T // SEGMENT), K * V) if training else None
        call("mlstm_forward", *_given(inputs), y, sums, end, kept, of=S.dtype)
        if training:
            ctx.save_for_backward(*inputs, y, sums, kept)
            ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor | None, of_end: Tensor | None) -> tuple[Any, ...]:
        *inputs, y, sums, kept = ctx.saved_tensors
        mixed, x, W, log_i, log_f, _, S = inputs
        of_y = torch.zeros_like(y) if of_y is None else in_rows(of_y)
        of_end = torch.zeros_like(S) if of_end is None else in_rows(of_end)
        of_mixed, of_x = (z.new_empty(z.shape, dtype=S.dtype) for z in (mixed, x))
        of_gates = torch.empty_like(log_i), torch.empty_like(log_f)
        of_W, of_S = S.new_zeros(len(S), *W.shape), torch.empty_like(S)  # for each row of the batch
        by_head = [g.transpose(1, 2)[..., None] for g in of_gates]
        into = of_mixed, of_x, *by_head, of_W, of_S
        given = y, sums, None, kept, of_y, of_end
        call("mlstm_backward", *_given(inputs), *given, *into, of=S.dtype)
        of_tokens = of_mixed.to(mixed.dtype), of_x.to(x.dtype)
        return *of_tokens, of_W.sum(0), *of_gates, None, of_S


def _given(inputs: Any) -> tuple[Any, ...]:
    """What both kernels take first."""
    mixed, x, W, *gates, S = inputs
    back = torch.unflatten(W, 2, (-1, 4)).transpose(1, 3).flatten(2).contiguous()
    by_head = [g.transpose(1, 2)[..., None] for g in gates]  # (B, H, T, 1)
    sizes = len(S), S.shape[1], x.shape[1], S.shape[2], LEAST
    return *sizes, S, *typed(mixed, x), W.contiguous(), back, *by_head
