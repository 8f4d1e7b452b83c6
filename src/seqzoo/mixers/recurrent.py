"""The recurrent families: one layer of RNN, LSTM or GRU as a mixer.

States are float32. Under bfloat16 autocast the kernel for a long chunk computes in bfloat16, so the
state is rounded once a chunk; chunks of a few tokens are computed in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.recurrent import recurrent
from seqzoo.ops.tensors import float32_or_wider


class Hidden(NamedTuple):
    """The state of an RNN or a GRU."""

    h: Tensor  # (B, D)


class Memory(NamedTuple):
    """The state of an LSTM: its output and its cell."""

    h: Tensor  # (B, D)
    c: Tensor  # (B, D)


class RNN(nn.Module):
    """Elman's recurrent network with tanh (Elman 1990). State: one vector."""

    layer: type[nn.RNN] | type[nn.GRU] = nn.RNN

    @checked()
    def __init__(self, *, dim: Count) -> None:
        super().__init__()
        self.cell = self.layer(dim, dim, batch_first=True)
        _orthogonal(self.cell)

    def forward(self, x: Tensor, state: Hidden | None = None) -> tuple[Tensor, Hidden]:
        (h,) = state or (_zeros(x),)
        y, h = recurrent(self.cell, x, h.to(x.dtype))
        return y.to(x.dtype), Hidden(*float32_or_wider(h))


class GRU(RNN):
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078). State: one vector."""

    layer = nn.GRU


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997). State: output h and cell c.

    The initial bias of the forget gate is 1 (Gers et al. 2000; Jozefowicz et al. 2015).
    """

    @checked()
    def __init__(self, *, dim: Count) -> None:
        super().__init__()
        self.cell = nn.LSTM(dim, dim, batch_first=True)
        _orthogonal(self.cell)
        with torch.no_grad():
            bias: Tensor = self.cell.all_weights[0][2]  # b_ih of the gates i, f, g, o
            bias[dim : 2 * dim] = 1.0

    def forward(self, x: Tensor, state: Memory | None = None) -> tuple[Tensor, Memory]:
        h, c = state or (_zeros(x), _zeros(x))
        y, h, c = recurrent(self.cell, x, h.to(x.dtype), c.to(x.dtype))
        return y.to(x.dtype), Memory(*float32_or_wider(h, c))


def _zeros(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], x.shape[2])


def _orthogonal(cell: nn.RNNBase) -> None:
    """For each gate Glorot-uniform input weights and orthogonal recurrent weights (Saxe et al.
    2014); zero biases."""
    for name, weight in cell.named_parameters():
        if name.startswith("weight_ih"):
            for gate in weight.detach().view(-1, cell.hidden_size, weight.shape[1]):
                nn.init.xavier_uniform_(gate)
        elif name.startswith("weight_hh"):
            for gate in weight.detach().view(-1, cell.hidden_size, weight.shape[1]):
                nn.init.orthogonal_(gate)
        else:
            nn.init.zeros_(weight)
