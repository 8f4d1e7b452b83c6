"""Norms of the last dimension."""

from __future__ import annotations

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
