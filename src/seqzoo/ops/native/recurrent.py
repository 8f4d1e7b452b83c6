"""RNN, LSTM and GRU: the recurrence in C++, the products over all tokens by torch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.ops.native import backward_pass, call, expect, has, run

GATES = {"RNN_TANH": 1, "GRU": 3, "LSTM": 4}
FEW = 16  # tokens
KEPT = {1: 0, 3: 4, 4: 5}  # vectors a token that the backward pass reads, by gates


def recurrent(cell: nn.RNNBase, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Token by token, some rows at once, the recurrent weights in the second-level cache.

    Under bfloat16 autocast the factors of products are rounded, but never a state.
    """
    w_ih, w_hh, b_ih, b_hh = cell.all_weights[0]
    with _precision(x):
        inputs = F.linear(x, w_ih)
    if inputs.dtype != x.dtype and not has("recurrent_forward", inputs.dtype):
        inputs = inputs.to(x.dtype)
    out: tuple[Tensor, ...] = run(_Recurrent, inputs, w_hh, b_ih, b_hh, *state)
    return out


def _precision(x: Tensor) -> AbstractContextManager[object]:
    """For few tokens autocast is off: the weights take longer to convert than to read."""
    return torch.autocast("cpu", enabled=False) if x.shape[1] <= FEW else nullcontext()


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        w_hh, b_ih, b_hh, *state = others
        B, T, D = *inputs.shape[:2], w_hh.shape[1]
        gates, training = inputs.shape[2] // D, any(ctx.needs_input_grad)
        for each in state:
            expect(each, B, D)
        y = w_hh.new_empty(B, T, D)
        after = [y.new_empty(B, D) for _ in state]
        kept = before = None
        if training:
            before, kept = inputs.new_empty(B, T, D), inputs.new_empty(B, T, KEPT[gates], D)
        given = [x.contiguous() for x in (inputs, *others)]
        c = (None,) if len(state) == 1 else ()
        call("recurrent_forward", gates, B, T, D, *given, *c, y, *after, *c, before, kept)
        if training:
            ctx.save_for_backward(*given, y, before, kept)
            ctx.set_materialize_grads(False)
        return y, *after

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor | None, *of_after: Tensor | None) -> tuple[Any, ...]:
        *given, y, before, kept = ctx.saved_tensors
        inputs, w_hh, _, _, *state = given
        B, T, D = y.shape
        gates = inputs.shape[2] // D
        of_inputs = torch.empty_like(inputs)
        of_products = torch.empty_like(inputs) if gates == GATES["GRU"] else None
        of_bias = y.new_empty(B, gates + (of_products is not None), D)
        of_state = [torch.empty_like(s) for s in state]
        of_outputs = [None if g is None else g.contiguous() for g in (of_y, *of_after)]
        c = (None,) if len(state) == 1 else ()
        sizes = gates, B, T, D
        to = of_inputs, of_products, of_bias, *of_state
        call("recurrent_backward", *sizes, *given, *c, y, *of_outputs, *c, before, kept, *to, *c)
        of_b_ih = of_b_hh = of_bias.sum(0).flatten()
        if of_products is None:
            of_products = of_inputs
        else:
            of_b_hh = torch.cat((of_b_ih[: 2 * D], of_b_ih[3 * D :]))
            of_b_ih = of_b_ih[: 3 * D]
        of_w = of_products.flatten(0, 1).mT @ before.flatten(0, 1)
        return of_inputs, of_w.to(w_hh.dtype), of_b_ih, of_b_hh, *of_state
