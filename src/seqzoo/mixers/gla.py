"""Gated linear attention (Yang et al. 2023, arXiv 2312.06635).

B batch, T time, D width, H heads, K = D / 2 H numbers of a key, V = D / H of a value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator

TEMPERATURE = 16  # tau of section 4.4: initial decays are near 1
RANK = 16  # of the gate's low-rank projection, section 4.4


class GatedMemory(NamedTuple):
    """The state of eq. 3, in float32 or wider."""

    S: Tensor  # (B, H, K, V)


class GatedLinearAttention(nn.Module):
    """Gated linear attention (eq. 3 and section 4.4): a data-dependent decay for every channel of
    the key.

        S_t = diag(alpha_t) S_{t-1} + k_t v_t^T        y_t = q_t S_t / sqrt(K)
        alpha_t = sigmoid(x_t W_1 W_2 + b)^(1/16)

    Each head's output is divided by its root mean square (the paper's layer norm, without its
    mean), times silu(x W_r + b_r). The norm cancels 1 / sqrt(K), kept as in the authors' code.

    Args:
        dim: width D, divisible by 2 n_heads.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
    """

    @checked(combinations.heads_divide_width, combinations.head_size_is_even)
    def __init__(self, *, dim: Count, n_heads: Count, n_layers: Count) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key = (nn.Linear(dim, dim // 2, bias=False) for _ in range(2))
        self.value = nn.Linear(dim, dim, bias=False)
        self.forget = nn.Sequential(
            nn.Linear(dim, RANK, bias=False), nn.Linear(RANK, dim // 2, bias=True)
        )
        self.gate = nn.Linear(dim, dim)
        self.norm = nn.Parameter(torch.ones(dim // n_heads))
        self.out = nn.Linear(dim, dim, bias=False)
        for linear in (self.query, self.key, self.value, self.gate):
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(self, x: Tensor, state: GatedMemory | None = None) -> tuple[Tensor, GatedMemory]:
        q, k, v, alpha = (
            linear(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, K or V)
            for linear in (self.query, self.key, self.value, self.forget)
        )
        (K, V), gate = (q.shape[-1], v.shape[-1]), self.gate(x)
        with torch.autocast(x.device.type, enabled=False):
            (S,) = state or (accumulator(q, len(x), self.n_heads, K, V),)
            q, alpha = q.to(S.dtype) * K**-0.5, alpha.to(S.dtype)
            y, S = matrix_state(q, k, v, S, F.logsigmoid(alpha) / TEMPERATURE)
            y = head_norm(y, self.norm, None, gate=gate, eps=None, centred=False)
        y = self.out(y)
        return y.to(x.dtype), GatedMemory(S)
