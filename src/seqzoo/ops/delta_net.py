"""The recurrences of the delta rule with one rate a head: DeltaNet (arXiv 2406.06484, sections 2.2
and 3.3), Gated DeltaNet (2412.06464, eq. 10) and Kimi Delta Attention (2510.26692, eq. 1), from
their convolved projections.

B batch, T time, H heads of K numbers of a key and V of a value.
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


def delta_net(
    qkv: Tensor, beta: Tensor, S: Tensor, log_w: Tensor | None = None, *, beta_max: float
) -> tuple[Tensor, Tensor]:
    """The outputs of T tokens, and the state after the last.

        q, k, v = silu(qkv), q and k then of length 1 in each head
        b_t = beta_max sigmoid(beta_t)        M_t = diag(w_t) S_{t-1}
        S_t = M_t + b_t k_t (v_t - k_t^T M_t)^T        y_t = q_t S_t / sqrt(K)

    Along k_t the state is multiplied by 1 - b_t, which is negative where b_t is above 1 (arXiv
    2411.12537).

    Args:
        qkv: (B, T, H (2 K + V)); beta: (B, T, H); in any type.
        S: (B, H, K, V), the state before the first token; float32 or wider.
        log_w: log of the decay, at most 0, in the type of S: (B, T, H), a decay of the whole head,
            or (B, T, H K). None: nothing is forgotten.
        beta_max: the largest b_t: from 1 to 2.

    Returns:
        y (B, H, T, V), and S, both in the type of S.
    """
    watch(lambda: weights(qkv, beta, S, log_w, beta_max=beta_max))
    run = choose("delta_net", S, qkv.shape[1])
    with unwatched():
        out: tuple[Tensor, Tensor] = run(qkv, beta, S, log_w, beta_max=beta_max)
    return out


def weights(
    qkv: Tensor, beta: Tensor, S: Tensor, log_w: Tensor | None, *, beta_max: float
) -> Tensor:
    """The weight of each value in each output, for the first row of the batch: (H, T, T)."""
    first = None if log_w is None else log_w[:1]
    return matrix_state.weights(_tokens(qkv[:1], beta[:1], S, first, beta_max), None)


def naive(
    qkv: Tensor, beta: Tensor, S: Tensor, log_w: Tensor | None, *, beta_max: float
) -> tuple[Tensor, Tensor]:
    """The definition, in the type of S."""
    q, k, v, log_w, a, b = _tokens(qkv, beta, S, log_w, beta_max)
    return matrix_state.matrix_state(q, k, v, S, log_w, a=a, b=b)


def _tokens(qkv: Tensor, beta: Tensor, S: Tensor, log_w: Tensor | None, beta_max: float) -> Tokens:
    """What the recurrence reads. k_t^T M_t is (w_t k_t)^T S_{t-1}."""
    (H, K, V), qkv = S.shape[1:], F.silu(qkv.to(S.dtype))
    q, k, v = (_heads(x, H) for x in torch.split(qkv, [H * K, H * K, H * V], -1))
    q, k = unit(q) * K**-0.5, unit(k)
    written = beta_max * beta.to(S.dtype).sigmoid().transpose(1, 2)[..., None] * k
    if log_w is None:
        return Tokens(q, written, v, q.new_zeros(1, 1, q.shape[2], 1), -written, k)
    log_w = _heads(log_w, H)
    return Tokens(q, written, v, log_w, -written, log_w.exp() * k)


def _heads(x: Tensor, H: int) -> Tensor:
    """(B, T, H ..) as (B, H, T, ..)."""
    return torch.unflatten(x, 2, (H, -1)).transpose(1, 2)
