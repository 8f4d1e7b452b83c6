"""What the mixers of the delta rule share.

What differs from the authors' code (flash-linear-attention) in all of them: the norm of the heads
adds 1e-7, float32's precision, to the mean square, not 1e-5; Xavier's initial scale is that of the
matrices of queries, keys and values together, so their weights begin smaller by a third.

B batch, T time, D width, H heads of K numbers of a key and V of a value, W = 4 taps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.ops.tensors import float32_or_wider

TAPS = 4  # of the convolution over queries, keys and values


class DeltaMemory(NamedTuple):
    """The last tokens of the convolution, and the matrix of every head, in float32 or wider."""

    conv: Tensor  # (B, W - 1, channels of queries, keys and values)
    S: Tensor  # (B, H, K, V)


class Decay(nn.Module):
    """The log of a decay that the data sets, as Mamba-2 has it (arXiv 2405.21060):
    log w = -e^A softplus(project(x) + bias), with a number A a head.

    Args:
        project: to n_heads * channels numbers.
        channels: of each head that have a decay of their own; 1: the whole head has one.
        least: e^A is uniform from that to 16 at first.
    """

    def __init__(self, project: nn.Module, n_heads: int, channels: int, *, least: float) -> None:
        super().__init__()
        self.project = project
        for linear in project.modules():
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(least, 16).log())
        speed = torch.empty(n_heads * channels).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.bias = nn.Parameter(speed + torch.log(-torch.expm1(-speed)))  # softplus of it is speed

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, n_heads * channels), at most 0, in float32 or wider."""
        (x,) = float32_or_wider(self.project(x))
        A = self.A_log.exp().repeat_interleave(len(self.bias) // len(self.A_log))
        return F.softplus(x + self.bias) * -A
