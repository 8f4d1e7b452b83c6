"""sLSTM (Beck et al. 2024, arXiv 2405.04517): an LSTM with exponential gates, a normaliser, and
recurrent weights within each head.

B batch, T time, D width, H heads of K = D / H numbers, W = 4 taps.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Natural
from seqzoo.ops.local import causal_conv
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.slstm import Cell, slstm
from seqzoo.ops.tensors import accumulator

TAPS = 4  # of the convolution
EPS = 1e-5  # of the norm of a head


class SLSTMState(NamedTuple):
    """The last tokens of the convolution, and the cell: h, c and n over e^m, and m."""

    conv: Tensor  # (B, W - 1, D)
    cell: Cell


class SLSTM(nn.Module):
    """The sLSTM (eq. 8 to 17; figure 10, "post up-projection", whose MLP is the block's).

        c_t = f c_{t-1} + i z        n_t = f n_{t-1} + i        h_t = o c_t / n_t

    The input gate i = e^(..) and the forget gate read silu(conv(x)), a causal convolution over 4
    tokens; z and the output gate o read x, and all of them h_{t-1}. All matrices have the H heads
    as blocks on their diagonal. The output is head_norm(h), without a product.

    Args:
        dim: width D, divisible by n_heads.
        forget_gate: f of its sum: `sigmoid` or `exp`.
        layer: index of the block, from 0; the first biases of f depend on it and on n_layers.
    """

    @checked(combinations.heads_divide_width)
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        forget_gate: Literal["sigmoid", "exp"],
        layer: Natural,
        n_layers: Count,
    ) -> None:
        super().__init__()
        K = dim // n_heads
        self.exponential = forget_gate == "exp"
        self.conv = nn.Parameter(torch.empty(dim, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(dim).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.weights = nn.Parameter(torch.empty(2, n_heads, K, 2 * K))  # of i and f, of z and o
        self.recurrent = nn.Parameter(torch.zeros(n_heads, 4 * K, K))  # of i, f, z and o
        self.bias = nn.Parameter(torch.zeros(n_heads, 4 * K))
        self.norm = nn.Parameter(torch.ones(dim))
        nn.init.normal_(self.weights, std=(2 / (5 * dim)) ** 0.5)
        depth = layer / max(1, n_layers - 1)  # 0 to 1
        unit = torch.arange(K) / max(1, K - 1)
        kept = 5 - 12 * unit ** (0.3 + 1.3 * depth)  # of sigmoid: 0.993 to 0.0009 a token
        with torch.no_grad():
            self.bias[:, K : 2 * K] = F.logsigmoid(kept) if self.exponential else kept

    def forward(self, x: Tensor, state: SLSTMState | None = None) -> tuple[Tensor, SLSTMState]:
        conv, cell = state or self._empty(x)
        with torch.autocast(x.device.type, enabled=False):
            mixed, newest = causal_conv(x, self.conv, conv)
            mixed = F.silu(mixed + self.conv_bias).to(x.dtype)
        inputs = self._product(mixed, self.weights[0]), self._product(x, self.weights[1])
        with torch.autocast(x.device.type, enabled=False):
            y, cell = slstm(inputs, self.recurrent, self.bias, cell, self.exponential)
            y = head_norm(y.transpose(1, 2), self.norm, None, gate=None, eps=EPS, centred=True)
        return y.to(x.dtype), SLSTMState(newest.to(conv.dtype), cell)

    def _product(self, x: Tensor, W: Tensor) -> Tensor:
        """x (B, T, D) by heads, times W (H, K, 2 K): (H, B, T, 2 K)."""
        heads = torch.unflatten(x, 2, (len(W), -1)).flatten(0, 1).transpose(0, 1)
        return torch.unflatten(heads @ W, 1, x.shape[:2])

    def _empty(self, x: Tensor) -> SLSTMState:
        zeros = accumulator(x, len(x), *self.recurrent.shape[::2])
        conv = accumulator(x, len(x), TAPS - 1, x.shape[2])
        return SLSTMState(conv, Cell(zeros, zeros, zeros, zeros).initial())
