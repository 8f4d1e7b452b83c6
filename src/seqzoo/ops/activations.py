"""A linear map and the activation after it, in one operation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(x W^T + b) (Hendrycks and Gimpel 2016, arXiv 1606.08415): (B, T, M) for x (B, T, D),
    weight (M, D) and bias (M,)."""
    y: Tensor = choose("linear_gelu", x, x.shape[1])(x, weight, bias)
    return y


def naive_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition."""
    return F.gelu(F.linear(x, weight, bias))
