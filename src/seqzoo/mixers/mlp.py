"""The channel mixer of a Transformer block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Position-wise feed-forward network, W2 gelu(W1 x) (Vaswani et al. 2017, eq. 2, with GELU as
    in GPT-2).

    Its state is ``()``: it remembers nothing.
    """

    def __init__(self, *, dim: int, mlp_ratio: float, n_layers: int) -> None:
        super().__init__()
        hidden = round(mlp_ratio * dim)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        gpt2_init(self.up)
        gpt2_init(self.down, residual_layers=n_layers)

    def forward(self, x: Tensor, state: tuple[()] | None = None) -> tuple[Tensor, tuple[()]]:
        return self.down(F.gelu(self.up(x))).to(x.dtype), ()


def gpt2_init(linear: nn.Linear, residual_layers: int | None = None) -> None:
    """Normal(0, 0.02), and smaller by sqrt(2 L) where the product is added to the residual of L
    layers (GPT-2)."""
    std = 0.02 if residual_layers is None else 0.02 / (2 * residual_layers) ** 0.5
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
