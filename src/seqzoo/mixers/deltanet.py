"""DeltaNet (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484).

B batch, T time, D width, H heads of K numbers, W = 4 taps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.local import causal_conv
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import float32_or_wider, unit

TAPS = 4


class DeltaMemory(NamedTuple):
    """The last tokens of the convolution, and the matrix of every head, in float32 or wider."""

    conv: Tensor  # (B, W - 1, 3 D)
    S: Tensor  # (B, H, K, K)


class DeltaNet(nn.Module):
    """Linear attention that writes by the delta rule (2406.06484, sections 2.2 and 3.3): the value
    that is stored at a key is subtracted before the new one is added.

        S_t = S_{t-1} + beta_t k_t (v_t - k_t^T S_{t-1})^T        y_t = q_t S_t / sqrt(K)

    Queries, keys and values pass a causal convolution over 4 tokens and silu; queries and keys then
    have length 1; beta = sigmoid(x W). Each head's output is divided by its root mean square, which
    cancels 1 / sqrt(K), kept as in the authors' code.

    Args:
        dim: width D, divisible by n_heads.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
    """

    @checked(combinations.heads_divide_width)
    def __init__(self, *, dim: Count, n_heads: Count, n_layers: Count) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = nn.Parameter(torch.empty(3 * dim, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.beta = nn.Linear(dim, n_heads, bias=False)
        self.norm = nn.Parameter(torch.ones(dim // n_heads))
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(self.qkv.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.beta.weight, gain=2**-2.5)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(self, x: Tensor, state: DeltaMemory | None = None) -> tuple[Tensor, DeltaMemory]:
        (B, T, _), H = x.shape, self.n_heads
        qkv, beta = self.qkv(x), self.beta(x)
        with torch.autocast(x.device.type, enabled=False):
            qkv, beta = float32_or_wider(qkv, beta)
            qkv, conv = causal_conv(qkv, self.conv, state and state.conv)
            qkv = F.silu(qkv).view(B, T, 3, H, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)  # (B, H, T, K) each
            K = q.shape[-1]
            q, k = unit(q), unit(k)
            S = state.S if state else q.new_zeros(B, H, K, K)
            written = beta.sigmoid().transpose(1, 2)[..., None] * k
            y, S = matrix_state(q * K**-0.5, written, v, S, a=-written, b=k)
            y = head_norm(y, self.norm, None, gate=None, eps=None, centred=False)
        y = self.out(y.to(x.dtype))
        return y.to(x.dtype), DeltaMemory(conv, S)
