"""mLSTM (Beck et al. 2024, arXiv 2405.04517): a matrix memory with exponential gates.

B batch, T time, D width, E = 2 D inner width, H heads of K = E / H numbers, W = 4 taps.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.local import causal_conv
from seqzoo.ops.mlstm import BLOCK, Gates, Memory, mlstm
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator, float32_or_wider

TAPS = 4  # of the convolution
EPS = 1e-5  # of the norm of a head


class MLSTMState(NamedTuple):
    """The last tokens of the convolution, and the memory: C and n over e^m, and m."""

    conv: Tensor  # (B, W - 1, E)
    memory: Memory


class MLSTM(nn.Module):
    """The mLSTM block (eq. 19 to 27; figure 11, "pre up-projection").

        C_t = f_t C_{t-1} + i_t k_t v_t^T        n_t = f_t n_{t-1} + i_t k_t
        h_t = q_t C_t / max(|q_t . n_t|, 1)

    The input is projected to twice its width for the memory and again for the gate. Queries and
    keys are made of silu(conv(x)), a causal convolution over 4 tokens, values of x, each by a
    matrix of blocks of 4 on its diagonal. The output is (head_norm(h) + skip silu(conv(x))) silu(z)
    times a matrix. As in the authors' code, the gates read q, k and v.

    Args:
        dim: width D.
        n_heads: H; a head has 2 dim / n_heads numbers, a multiple of 4.
        input_gate: i of its sum: `exp`, or `sigmoid`, with the normaliser n as mlstm_kernels has it
            by default (TFLA, arXiv 2503.14376, leaves n out). f is a sigmoid, as in the authors'
            code.
        n_layers: layers of the model, for the initialisation of the output projection.
    """

    begins_with_product = True

    @checked(combinations.heads_of_blocks)
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        input_gate: Literal["exp", "sigmoid"],
        n_layers: Count,
    ) -> None:
        super().__init__()
        inner = 2 * dim
        self.n_heads, self.input_gate = n_heads, input_gate
        self.project = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Parameter(torch.empty(inner, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.conv_bias = nn.Parameter(torch.empty(inner).uniform_(-(TAPS**-0.5), TAPS**-0.5))
        self.blocks = nn.Parameter(torch.empty(3, inner // BLOCK, BLOCK, BLOCK))
        self.gates = nn.Parameter(torch.zeros(2, n_heads, 3 * inner))  # of q, k and v
        self.gates_bias = nn.Parameter(torch.empty(2, n_heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)
        nn.init.normal_(self.project.weight, std=(2 / (5 * dim)) ** 0.5)
        nn.init.normal_(self.blocks, std=(2 / (5 * dim)) ** 0.5)
        nn.init.normal_(self.out.weight, std=2 / n_layers * dim**-0.5)
        with torch.no_grad():
            self.gates_bias[0].normal_(std=0.1)
            self.gates_bias[1].copy_(torch.linspace(3, 6, n_heads))  # f of 0.95 to 0.998

    def forward(self, x: Tensor, state: MLSTMState | None = None) -> tuple[Tensor, MLSTMState]:
        inner, z = self.project(x).chunk(2, -1)
        with torch.autocast(x.device.type, enabled=False):
            inner, z = float32_or_wider(inner, z)
            conv, memory = state or self._empty(inner)
            mixed, newest = causal_conv(inner, self.conv, conv)
            mixed = F.silu(mixed + self.conv_bias)
            y, memory = mlstm(mixed, inner, self._gates(mixed, inner), memory, self.blocks)
            h = head_norm(y, self.norm, None, gate=None, eps=EPS, centred=True)
            h = (h + self.skip * mixed) * F.silu(z)
        y = self.out(h.to(x.dtype))
        return y.to(x.dtype), MLSTMState(newest.to(conv.dtype), memory)

    def _gates(self, mixed: Tensor, x: Tensor) -> Gates:
        """Sums of q, k and v, by matrices that read what these are made of."""
        W, G = torch.unflatten(self.gates.flatten(0, 1), 1, (3, -1, BLOCK, 1)), self.blocks
        of_q, of_k, of_v = (W * G).sum(-2).flatten(2).unbind(1)  # (2 H, E)
        sums = F.linear(mixed, of_q + of_k, self.gates_bias.flatten()) + F.linear(x, of_v)
        i, f = sums.chunk(2, -1)
        return Gates(i if self.input_gate == "exp" else F.logsigmoid(i), F.logsigmoid(f))

    def _empty(self, x: Tensor) -> MLSTMState:
        B, E, H = len(x), x.shape[2], self.n_heads
        sizes = ((H, E // H, E // H), (H, E // H), (H,))
        memory = Memory(*(accumulator(x, B, *size) for size in sizes))
        return MLSTMState(accumulator(x, B, TAPS - 1, E), memory)
