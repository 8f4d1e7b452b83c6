"""sLSTM: the recurrence in C++, the products over all tokens by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.native import backward_pass, call, expect, has, run
from seqzoo.ops.slstm import Cell

KEPT = 7  # numbers that the backward pass reads of every unit and token, as in the kernel


def slstm(
    inputs: tuple[Tensor, Tensor], R: Tensor, bias: Tensor, cell: Cell, exponential: bool
) -> tuple[Tensor, Cell]:
    """Token by token, some rows of a head at once, its recurrent weights in the second-level cache.

    Inputs in bfloat16, as products under autocast make them, say that the factors of the recurrent
    products are rounded too, but never a state.
    """
    wide = cell.c.dtype
    rounded = inputs[0].dtype != wide and has("slstm_forward", inputs[0].dtype)
    given = inputs if rounded else [part.to(wide) for part in inputs]
    y, *after = run(_SLSTM, exponential, *given, R.to(wide), bias.to(wide), *cell)
    return y, Cell(*after)


class _SLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exponential: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = [x.contiguous() for x in inputs]
        of_i_f, _, R, _, *state = given
        (heads, B, T), K = of_i_f.shape[:3], R.shape[2]
        for each in state:
            expect(each, B, heads, K)
        y = R.new_empty(B, T, heads, K)
        after = [torch.empty_like(s) for s in state]
        kept = before = None
        if any(ctx.needs_input_grad):
            before = of_i_f.new_empty(heads, B, T, K)
            kept = of_i_f.new_empty(heads, B, T, KEPT * K)
        ctx.sizes = heads, B, T, K, int(exponential)
        call("slstm_forward", *ctx.sizes, *given, y, *after, before, kept)
        if kept is not None:
            ctx.save_for_backward(*given, before, kept)
            ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(after[3])  # m
        return y, *after

    @staticmethod
    @backward_pass
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[Any, ...]:
        *given, before, kept = ctx.saved_tensors
        of_i_f, of_z_o, R, bias, *state = given
        of_inputs = torch.empty_like(of_i_f), torch.empty_like(of_z_o)
        of_bias = R.new_empty(len(state[0]), *bias.shape)
        of_state = [torch.empty_like(s) for s in state[:3]]
        of_outputs = tuple(None if g is None else g.contiguous() for g in of_outputs)
        given = *given, *of_outputs[:4], kept
        call("slstm_backward", *ctx.sizes, *given, *of_inputs, of_bias, *of_state)
        tokens = before.flatten(1, 2)  # (H, B T, K)
        of_R = torch.cat([part.flatten(1, 2).mT @ tokens for part in of_inputs], 1)
        return None, *of_inputs, of_R.to(R.dtype), of_bias.sum(0), *of_state, None
