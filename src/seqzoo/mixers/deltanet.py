"""DeltaNet (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484).

B batch, T time, D width, H heads of K numbers, W = 4 taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, LargestRate
from seqzoo.mixers.delta import TAPS, DeltaMemory
from seqzoo.ops.delta_net import delta_net
from seqzoo.ops.local import causal_conv
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator


class DeltaNet(nn.Module):
    """Linear attention that writes by the delta rule (2406.06484, sections 2.2 and 3.3): the value
    that is stored at a key is subtracted before the new one is added.

        S_t = S_{t-1} + beta_t k_t (v_t - k_t^T S_{t-1})^T        y_t = q_t S_t / sqrt(K)

    Queries, keys and values pass a causal convolution over 4 tokens and silu; queries and keys then
    have length 1; beta = beta_max sigmoid(x W). Each head's output is divided by its root mean
    square, which cancels 1 / sqrt(K), kept as in the authors' code.

    Args:
        dim: width D, divisible by n_heads.
        n_layers: layers of the model, for GPT-2's initialisation of the output projection.
        beta_max: the paper's is 1. With 2 the eigenvalues of what multiplies the state reach -1
            (Grazzi et al. 2024, arXiv 2411.12537, section 4.2), and a layer can count modulo two.
    """

    @checked(combinations.heads_divide_width)
    def __init__(
        self, *, dim: Count, n_heads: Count, n_layers: Count, beta_max: LargestRate
    ) -> None:
        super().__init__()
        self.n_heads, self.beta_max = n_heads, beta_max
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = nn.Parameter(torch.empty(3 * dim, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.beta = nn.Linear(dim, n_heads, bias=False)
        self.norm = nn.Parameter(torch.ones(dim // n_heads))
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(self.qkv.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.beta.weight, gain=2**-2.5)
        nn.init.normal_(self.out.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(self, x: Tensor, state: DeltaMemory | None = None) -> tuple[Tensor, DeltaMemory]:
        (B, _, D), H = x.shape, self.n_heads
        qkv, beta = self.qkv(x), self.beta(x)
        with torch.autocast(x.device.type, enabled=False):
            qkv, conv = causal_conv(qkv, self.conv, state and state.conv)
            S = state.S if state else accumulator(qkv, B, H, D // H, D // H)
            y, S = delta_net(qkv, beta, S, beta_max=self.beta_max)
            y = head_norm(y, self.norm, None, gate=None, eps=None, centred=False)
        y = self.out(y.to(x.dtype))
        return y.to(x.dtype), DeltaMemory(conv, S)
