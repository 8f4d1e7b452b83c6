"""Parts of channel mixers: element-by-element operations, joined with the product beside them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose


def relu2_product(h: Tensor, W: Tensor) -> Tensor:
    """relu(h)^2 W^T (So et al. 2021, arXiv 2109.08668), of which only h need be kept.

    Args:
        h: (B, T, N); W: (D, N).

    Returns:
        (B, T, D).
    """
    y: Tensor = choose("relu2_product", h, h.shape[1])(h, W)
    return y


def naive_relu2_product(h: Tensor, W: Tensor) -> Tensor:
    """The definition."""
    return F.linear(h.relu().square(), W)


def gate(r: Tensor, x: Tensor) -> Tensor:
    """sigmoid(r) * x, for r and x of one shape (B, T, D) and type."""
    y: Tensor = choose("gate", x, x.shape[1])(r, x)
    return y


def naive_gate(r: Tensor, x: Tensor) -> Tensor:
    """The definition."""
    return r.sigmoid() * x
