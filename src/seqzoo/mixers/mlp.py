"""The channel mixer of a Transformer block."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Positive
from seqzoo.ops.activations import linear_gelu
from seqzoo.ops.channel import relu2_product

GATED = ("swiglu", "geglu")


class MLP(nn.Module):
    """Position-wise feed-forward network, W2 f(W1 x) (Vaswani et al. 2017, eq. 2).

    Its state is ``()``.

    Args:
        dim: width D.
        mlp_ratio: hidden width / D.
        n_layers: layers of the model, for GPT-2's initialisation of W2.
        activation: f: `gelu` as in GPT-2, `relu`, `relu2`, its square (So et al. 2021, arXiv
            2109.08668); or `swiglu` or `geglu`, where the hidden layer is silu or gelu(W3 x) * (W1
            x) (Shazeer 2020, arXiv 2002.05202, eq. 6; 2/3 of the hidden width then has as many
            parameters).
    """

    begins_with_product = True

    @checked()
    def __init__(
        self,
        *,
        dim: Count,
        mlp_ratio: Positive,
        n_layers: Count,
        activation: Literal["gelu", "relu", "relu2", "swiglu", "geglu"] = "gelu",
    ) -> None:
        super().__init__()
        hidden = round(mlp_ratio * dim)
        self.activation = activation
        self.up = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden) if activation in GATED else None
        self.down = nn.Linear(hidden, dim)
        gpt2_init(self.up)
        gpt2_init(self.down, residual_layers=n_layers)
        if self.gate is not None:
            gpt2_init(self.gate)

    def forward(self, x: Tensor, state: tuple[()] | None = None) -> tuple[Tensor, tuple[()]]:
        if self.activation == "gelu":
            hidden = linear_gelu(x, self.up.weight, self.up.bias)
        elif self.activation == "geglu" and self.gate is not None:
            hidden = linear_gelu(x, self.gate.weight, self.gate.bias) * self.up(x)
        elif self.gate is not None:
            hidden = F.silu(self.gate(x)) * self.up(x)
        elif self.activation == "relu2":
            y = relu2_product(self.up(x), self.down.weight)
            return (y + self.down.bias).to(x.dtype), ()
        else:
            hidden = F.relu(self.up(x))
        return self.down(hidden).to(x.dtype), ()


def gpt2_init(linear: nn.Linear, residual_layers: int | None = None) -> None:
    """Normal(0, 0.02), divided by sqrt(2 L) where the output is added to the residual stream of L
    layers (GPT-2); zero biases."""
    std = 0.02 if residual_layers is None else 0.02 / (2 * residual_layers) ** 0.5
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
