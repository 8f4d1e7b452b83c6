"""Norms of the last dimension."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool, product: bool
) -> Tensor:
    """Layer norm (Ba et al. 2016, arXiv 1607.06450), or if not `centred` the root-mean-square norm
    (Zhang and Sennrich 2019, arXiv 1910.07467).

    Args:
        x: (B, T, D); weight, bias: (D,).
        product: whether only matrix products read the result: then it may be in the type that
            autocast gives those.
    """
    y: Tensor = choose("norm", x, x.shape[1])(
        x, weight, bias, eps, centred=centred, product=product
    )
    return y


def naive_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool, product: bool
) -> Tensor:
    """By torch, in the type of x."""
    if centred:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x divided by the root mean square of its last dimension, times a weight of a shape that
    expands to that of x; computed in float32 or wider, in the type of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    return y.to(x.dtype)
