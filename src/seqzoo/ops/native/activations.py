"""Activations in C++: the bias is added there, and computed again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.native import PARTS, backward_pass, call, has, in_rows, run


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The product by torch, without the bias."""
    y = F.linear(x, weight)
    if not has("gelu_forward", y.dtype):
        return F.gelu(y + bias.to(y.dtype))
    out: Tensor = run(_Gelu, y.flatten(0, -2), bias.to(y.dtype))
    return out.view(y.shape)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        y = torch.empty_like(x)
        call("gelu_forward", *x.shape, x, bias, y)
        ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        of_x = torch.empty_like(x)
        of_bias = x.new_zeros(PARTS, x.shape[1], dtype=torch.float32)
        call("gelu_backward", *x.shape, PARTS, x, bias, in_rows(of_y), of_x, of_bias)
        return of_x, of_bias.sum(0).to(bias.dtype)
