"""The matrix memory of mLSTM (Beck et al. 2024, arXiv 2405.04517, eq. 19 to 27).

B batch, T time, H heads of K numbers, E = H K, G = E / 4 blocks.

    C_t = f_t C_{t-1} + i_t k_t v_t^T        n_t = f_t n_{t-1} + i_t k_t
    y_t = q_t C_t / max(|q_t . n_t|, 1)

i may be any positive number, so C and n are kept as (C e^-m, n e^-m, m), where m_t is the larger of
log f_t + m_{t-1} and log i_t, and the 1 becomes e^-m (eq. 15 to 17). y does not depend on m, so no
gradient goes through it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqzoo.ops import matrix_state
from seqzoo.ops.registry import choose
from seqzoo.ops.watch import unwatched, watch

BLOCK = 4  # side of the blocks that make queries, keys and values
LEAST = 1e-30  # bound of e^-m, which is 0 in float32 where m is above 103


class Memory(NamedTuple):
    """The state after a token: C and n over e^m, and m; float32 or wider."""

    C: Tensor  # (B, H, K, K)
    n: Tensor  # (B, H, K)
    m: Tensor  # (B, H)


class Gates(NamedTuple):
    """Logarithms of the gates, each (B, T, H) and float32 or wider."""

    i: Tensor
    f: Tensor


def mlstm(
    mixed: Tensor, x: Tensor, gates: Gates, memory: Memory, blocks: Tensor
) -> tuple[Tensor, Memory]:
    """The outputs of T tokens, and the memory after the last.

    Args:
        mixed: (B, T, E), what queries and keys are made of; x: (B, T, E), what values are made of.
        blocks: (3, G, 4, 4), the blocks on the diagonals of the matrices that make queries, keys
            and values: y_o = sum_i W_oi x_i in each block. Keys are divided by sqrt(K).

    Returns:
        y (B, H, T, K) and the memory, in the type of the memory.
    """
    watch(lambda: _weights(mixed[:1], x[:1], gates, memory, blocks))
    S = torch.cat((memory.C, memory.n[..., None]), -1)
    with unwatched():
        y, S, m = choose("mlstm", S, x.shape[1])(mixed, x, gates, S, memory.m, blocks)
    return y, Memory(S[..., :-1], S[..., -1], m)


def naive(
    mixed: Tensor, x: Tensor, gates: Gates, S: Tensor, m: Tensor, blocks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, token by token. S (B, H, K, K + 1) has n as its last column."""
    q, k, v = projections(mixed, x, S, blocks)
    ys = []
    for t in range(x.shape[1]):
        i, f = gates.i[:, t], gates.f[:, t]
        before, m = m, torch.maximum(f + m, i).detach()
        # m - before is exact where both are near, so that no rounding of m changes C e^m
        f, i = (f - (m - before)).exp(), (i - m).exp()  # (B, H)
        S = f[..., None, None] * S + (i[..., None] * k[:, :, t])[..., None] * v[:, :, t, None]
        ys.append(normalised((q[:, :, t, None] @ S)[:, :, 0], m))
    return torch.stack(ys, 2), S, m


def parallel(
    mixed: Tensor, x: Tensor, gates: Gates, S: Tensor, m: Tensor, blocks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All m first, as they depend on the gates alone; then the recurrence of a matrix state."""
    q, k, v = projections(mixed, x, S, blocks)
    log_i, log_f, m = (z.transpose(1, 2) for z in scaled(gates, m))  # (B, H, T)
    k = k * log_i.exp()[..., None]
    y, S = matrix_state.matrix_state(q, k, v, S, log_f[..., None])
    return normalised(y, m), S, m[:, :, -1].clone()


def scaled(gates: Gates, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log i_t - m_t, log f_t + m_{t-1} - m_t and m_t, each (B, T, H), from m (B, H) before.

    m_t = F_t + max(m_0, log i_s - F_s for s <= t), where F is the sum of log f. In float64, as
    small differences of large sums matter; the last m alone is rounded, as it is carried.
    """
    log_i, log_f, before = gates.i.double(), gates.f.double(), m[:, None].double()
    with torch.no_grad():
        F = log_f.cumsum(1)
        ms = F + torch.maximum((log_i - F).cummax(1).values, before)
        ms = torch.cat((ms[:, :-1], ms[:, -1:].to(m.dtype).double()), 1)
        before = torch.cat((before, ms[:, :-1]), 1)
    log_i, log_f = log_i - ms, log_f + (before - ms)
    return log_i.to(m.dtype), log_f.to(m.dtype), ms.to(m.dtype)


def normalised(y: Tensor, m: Tensor) -> Tensor:
    """y (.., K + 1), whose last column is q . n, divided by max(|q . n|, e^-m)."""
    least = (-m).exp().clamp(min=LEAST)[..., None]
    return y[..., :-1] / torch.maximum(y[..., -1:].abs(), least)


def projections(
    mixed: Tensor, x: Tensor, S: Tensor, blocks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k (B, H, T, K) and v (B, H, T, K + 1), whose last number is 1, in the type of S."""
    H, K = S.shape[1:3]
    q, k, v = (
        torch.unflatten(block_product(z.to(S.dtype), W), 2, (H, K)).transpose(1, 2)
        for z, W in zip((mixed, mixed, x), blocks.to(S.dtype), strict=True)
    )
    return q, k * K**-0.5, torch.cat((v, torch.ones_like(v[..., :1])), -1)


def block_product(x: Tensor, W: Tensor) -> Tensor:
    """x (B, T, E) times a matrix that has the blocks W (G, 4, 4) on its diagonal, else 0."""
    x = torch.unflatten(x, 2, (-1, BLOCK))  # (B, T, G, 4)
    y = x[..., :1] * W[..., 0]
    for i in range(1, BLOCK):
        y = torch.addcmul(y, x[..., i : i + 1], W[..., i])
    return y.flatten(2)


def _weights(mixed: Tensor, x: Tensor, gates: Gates, memory: Memory, blocks: Tensor) -> Tensor:
    """The weight of each value in each output, from the empty state: (H, T, T)."""
    H, K = memory.n.shape[1:]
    S, m = memory.C.new_zeros(1, H, K, K + 1), memory.m.new_zeros(1, H)
    q, k, v = projections(mixed, x, S, blocks)
    log_i, log_f, m = (z.transpose(1, 2) for z in scaled(Gates(*(g[:1] for g in gates)), m))
    k = k * log_i.exp()[..., None]
    tokens = matrix_state.Tokens(q, k, v, log_f[..., None], None, None)
    each = matrix_state.weights(tokens, None)
    return each / torch.maximum(each.sum(-1).abs(), (-m[0]).exp().clamp(min=LEAST))[..., None]
