"""The recurrence of DeltaNet (arXiv 2406.06484, sections 2.2 and 3.3), from its convolved
projections.

B batch, T time, H heads of K numbers, D = H K.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops import matrix_state
from seqzoo.ops.matrix_state import Tokens
from seqzoo.ops.registry import choose
from seqzoo.ops.tensors import unit
from seqzoo.ops.watch import unwatched, watch


def delta_net(qkv: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of T tokens, and the state after the last.

        q, k, v = silu(qkv), q and k then of length 1 in each head        b_t = sigmoid(beta_t)
        S_t = S_{t-1} + b_t k_t (v_t - k_t^T S_{t-1})^T        y_t = q_t S_t / sqrt(K)

    Args:
        qkv: (B, T, 3 D); beta: (B, T, H); in any type.
        S: (B, H, K, K), the state before the first token; float32 or wider.

    Returns:
        y (B, H, T, K), and S, both in the type of S.
    """
    watch(lambda: matrix_state.weights(_tokens(qkv[:1], beta[:1], S), None))
    with unwatched():
        out: tuple[Tensor, Tensor] = choose("delta_net", S, qkv.shape[1])(qkv, beta, S)
    return out


def naive(qkv: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, in the type of S."""
    q, k, v, _, a, b = _tokens(qkv, beta, S)
    return matrix_state.matrix_state(q, k, v, S, a=a, b=b)


def _tokens(qkv: Tensor, beta: Tensor, S: Tensor) -> Tokens:
    """What the recurrence reads."""
    (H, K), qkv = S.shape[1:3], F.silu(qkv.to(S.dtype))
    q, k, v = torch.unflatten(qkv, 2, (3, H, K)).permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
    q, k = unit(q), unit(k)
    written = beta.to(S.dtype).sigmoid().transpose(1, 2)[..., None] * k
    return Tokens(q * K**-0.5, written, v, q.new_zeros(1, 1, q.shape[2], 1), -written, k)
