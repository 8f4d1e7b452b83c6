"""RetNet's multi-scale retention (Sun et al. 2023, arXiv 2307.08621).

B batch, T time, D width, H heads, K = D / H numbers of a key, V = 2 K of a value.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.matrix_state import turned_matrix_state
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import float32_or_wider


class RetentionMemory(NamedTuple):
    """The state of eq. 6, relative to the next token, in float32 or wider."""

    S: Tensor  # (B, H, K, V)


class Retention(nn.Module):
    """Multi-scale retention (eq. 5-8): linear attention with a constant decay for each head.

        S_t = gamma S_{t-1} + k_t v_t^T    y_t = q_t S_t    gamma = 1 - 2^(-5 - h), h = 0 .. H - 1

    Queries and keys are turned to their positions, with the frequencies of `rotate`, and keys
    divided by sqrt(K); each head's output is divided by its root mean square (the paper's group
    norm, without its mean), times silu(x W_G). The divisors at the end of the paper's section 2.2
    are left out, as the norm cancels them.

    Args:
        dim: width D; D / n_heads is even, for the turning.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
    """

    decay: Tensor  # (H, 1, 1): log gamma

    @checked(combinations.heads_divide_width, combinations.head_size_is_even)
    def __init__(self, *, dim: Count, n_heads: Count, n_layers: Count) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.value, self.gate = (nn.Linear(dim, 2 * dim, bias=False) for _ in range(2))
        self.out = nn.Linear(2 * dim, dim, bias=False)
        for linear in (self.query, self.key, self.value, self.gate):
            nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)  # as the authors' code
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)
        rates = torch.log1p(-(2.0 ** (-5.0 - torch.arange(n_heads))))
        self.register_buffer("decay", rates[:, None, None], persistent=False)
        self.min_log_w = math.log1p(-(2.0**-5))

    def forward(
        self, x: Tensor, state: RetentionMemory | None = None
    ) -> tuple[Tensor, RetentionMemory]:
        B = len(x)
        q, k, v = (
            linear(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, K or V)
            for linear in (self.query, self.key, self.value)
        )
        (K, V), gate = (q.shape[-1], v.shape[-1]), self.gate(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = float32_or_wider(q, k, v)
            (S,) = state or (q.new_zeros(B, self.n_heads, K, V),)
            decay = self.decay.to(q.dtype)[None]
            y, S = turned_matrix_state(q, k * K**-0.5, v, S, decay, min_log_w=self.min_log_w)
            y = head_norm(y, None, None, gate=gate, eps=None, centred=False)
        y = self.out(y)
        return y.to(x.dtype), RetentionMemory(S)
