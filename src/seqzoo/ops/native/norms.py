"""Norms in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.native import backward_pass, call, in_rows

PARTS = 16  # of the rows, each with sums of its own for the gradients of weight and bias
_SUFFIX = {torch.float32: "", torch.float64: "", torch.bfloat16: "_to_bfloat16"}


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool, product: bool
) -> Tensor:
    """In the type of autocast's products, if only those read it; else in the type of x."""
    to = x.dtype
    if product and to == torch.float32 and torch.is_autocast_enabled("cpu"):
        if torch.get_autocast_dtype("cpu") == torch.bfloat16:
            to = torch.bfloat16
    of_type = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    rows = in_rows(x).reshape(-1, x.shape[-1])
    y: Tensor = _Norm.apply(rows, *of_type, eps, centred, to)  # type: ignore[no-untyped-call]
    return y.view(x.shape)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centred: bool,
        to: torch.dtype,
    ) -> Tensor:
        y, kept = torch.empty_like(x, dtype=to), x.new_empty(len(x), 2)
        ctx.sizes, ctx.to = (*x.shape, int(centred), eps), to
        call("norm_forward" + _SUFFIX[to], *ctx.sizes, x, weight, bias, kept, y)
        ctx.save_for_backward(x, weight, bias, kept)
        return y

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kept = ctx.saved_tensors  # once: checkpointing hands them out once
        of_x, of_weight = torch.empty_like(x), weight.new_zeros(PARTS, len(weight))
        of_bias = None if bias is None else torch.zeros_like(of_weight)
        name = "norm_backward" + _SUFFIX[ctx.to]
        given = x, weight, bias, kept, PARTS, in_rows(of_y)
        call(name, *ctx.sizes, *given, of_x, of_weight, of_bias)
        return of_x, of_weight.sum(0), None if of_bias is None else of_bias.sum(0), None, None, None
