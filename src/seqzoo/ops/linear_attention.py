"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236) from its projections.

B batch, T time, H heads of K numbers, M features, D = H K.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.registry import choose

EPS = 1e-6  # keeps the normaliser from zero, as in the authors' code


def linear_attention(qkv: Tensor, S: Tensor, log_w: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    """The outputs of T tokens, and the state after the last.

        S_t = e^log_w S_{t-1} + phi(k_t) v_t^T        z_t = e^log_w z_{t-1} + phi(k_t)
        y_t = phi(q_t) S_t / (phi(q_t) . z_t + 1e-6)        phi = elu + 1

    Args:
        qkv: (B, T, 3 D), queries, keys and values, in any type.
        S: (B, H, K, K + 1), the state before the first token, its last column z; float32 or wider.
        log_w: (H,), at most 0, without a gradient.
        more: `min_log_w` and `chunk`, as in `matrix_state`.

    Returns:
        y (B, T, D), in the type of qkv, and S.
    """
    run = choose("linear_attention", S, qkv.shape[1])
    out: tuple[Tensor, Tensor] = run(qkv, S, log_w.to(S.dtype), **more)
    return out


def naive(qkv: Tensor, S: Tensor, log_w: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    """The definition, in the type of S."""
    q, k, v = heads(qkv, S.shape[1])
    q, k = (F.elu(x.to(S.dtype)) + 1 for x in (q, k))
    y, S = normalised(q, k, v, S, log_w, **more)
    return y.transpose(1, 2).flatten(2).to(qkv.dtype), S


def heads(qkv: Tensor, H: int) -> tuple[Tensor, ...]:
    """Queries, keys and values of each head, (B, H, T, K), from (B, T, 3 D)."""
    return torch.unflatten(qkv, 2, (3, H, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def normalised(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, log_w: Tensor, **more: Any
) -> tuple[Tensor, Tensor]:
    """Sums of values, divided by sums of keys.

    Args:
        q, k: features, (B, H, T, M); v: (B, H, T, V).
        S: (B, H, M, V + 1), its last column the sum of keys.
        log_w, more: as in `linear_attention`.

    Returns:
        (B, H, T, V), in the type of S, and S.
    """
    V = v.shape[-1]
    v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    y, S = matrix_state(q, k, v, S, log_w[None, :, None, None], **more)
    return y[..., :V] / (y[..., V:] + EPS), S
