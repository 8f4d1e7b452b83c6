"""Causal linear attention (Katharopoulos et al. 2020, arXiv 2006.16236), optionally with a decay a
head.

B batch, H heads, T time, K key size, V value size, C tokens a chunk, N chunks.

    S_t = g S_{t-1} + k_t v_t^T        z_t = g z_{t-1} + k'_t        y_t = q_t S_t / (q'_t . z_t +
    eps)

with q, k >= 0 already mapped by phi. g = 1 is the paper's eq. 18-20; a constant g < 1 a head is the
retention of Sun et al. 2023 (arXiv 2307.08621, eq. 6). q', k' are q, k before rotary positions (Su
et al. 2021, eq. 19): a normaliser must stay positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqzoo.ops import choose, watch

EPS = 1e-6
CHUNK = 64


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, *, decay: Tensor, qn: Tensor, kn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Read T tokens into the state (S, z) and answer each.

    Args:
        q, k: (B, H, T, K), v: (B, H, T, V), of float32 or wider.
        S: (B, H, K, V), z: (B, H, K): the memory and the normaliser before the first token.
        decay: (H,), log g, at most 0.
        qn, kn: (B, H, T, K): queries and keys as the normaliser sees them.

    Returns:
        y (B, H, T, V), and S, z after the last token.
    """
    watch(lambda: _weights(q[:1], k[:1], decay, qn[:1], kn[:1]))
    if choose("linear_attention", q, q.shape[2]) == "naive":
        return _naive(q, k, v, S, z, decay, qn, kn)
    T = q.shape[2]
    whole = T - T % CHUNK
    if whole in (0, T):
        return _chunked(q, k, v, S, z, decay, qn, kn)
    (q0, q1), (k0, k1), (v0, v1), (qn0, qn1), (kn0, kn1) = (
        t.tensor_split((whole,), 2) for t in (q, k, v, qn, kn)
    )
    y0, S, z = _chunked(q0, k0, v0, S, z, decay, qn0, kn0)
    y1, S, z = _chunked(q1, k1, v1, S, z, decay, qn1, kn1)
    return torch.cat((y0, y1), 2), S, z


def _weights(q: Tensor, k: Tensor, decay: Tensor, qn: Tensor, kn: Tensor) -> Tensor:
    """How much each value counts in each answer, from the empty state, of one row: (H, T, T)."""
    _, H, T, K = q.shape
    values = torch.eye(T).to(q).expand(1, H, T, T)
    empty = q.new_zeros(1, H, K, T), q.new_zeros(1, H, K)
    return linear_attention(q, k, values, *empty, decay=decay, qn=qn, kn=kn)[0][0]


def _naive(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, decay: Tensor, qn: Tensor, kn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    g = decay.exp()[:, None]
    ys = []
    for t in range(q.shape[2]):
        S = g[..., None] * S + k[:, :, t, :, None] * v[:, :, t, None, :]
        z = g * z + kn[:, :, t]
        numerator = (q[:, :, t, None, :] @ S).squeeze(2)
        ys.append(numerator / ((qn[:, :, t] * z).sum(-1, keepdim=True) + EPS))
    return torch.stack(ys, 2), S, z


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor, decay: Tensor, qn: Tensor, kn: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Inside a chunk a masked (q k^T) v; across chunks q times the state at the chunk's start."""
    B, H, T, K = q.shape
    C = min(CHUNK, T)
    N = T // C
    q, k, v, qn, kn = (t.reshape(B, H, N, C, t.shape[-1]) for t in (q, k, v, qn, kn))
    time = torch.arange(C, device=q.device)
    lag = (time[:, None] - time).clamp(min=0)  # (C, C)
    weight = (decay[:, None, None] * lag).exp().tril()[:, None]  # (H, 1, C, C): g^(t-s) for s <= t
    since_start = (decay[:, None] * (time + 1)).exp()[:, None, :, None]  # (H, 1, C, 1)
    to_end = weight[:, :, -1, :, None]  # (H, 1, C, 1)

    gained = (k * to_end).transpose(-1, -2) @ v  # (B, H, N, K, V)
    gained_z = (kn * to_end).sum(-2)  # (B, H, N, K)
    g = (decay * C).exp()[:, None]
    starts, starts_z = [], []
    for n in range(N):
        starts.append(S)
        starts_z.append(z)
        S = g[..., None] * S + gained[:, :, n]
        z = g * z + gained_z[:, :, n]
    memory = torch.stack(starts, 2)  # (B, H, N, K, V)
    normaliser = torch.stack(starts_z, 2)[..., None, :]  # (B, H, N, 1, K)

    numerator = ((q @ k.transpose(-1, -2)) * weight) @ v + (q @ memory) * since_start
    seen = weight @ kn + since_start * normaliser  # (B, H, N, C, K): z at every token
    y = numerator / ((qn * seen).sum(-1, keepdim=True) + EPS)
    return y.reshape(B, H, T, v.shape[-1]), S, z
