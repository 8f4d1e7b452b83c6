"""Time mixing of RWKV-7 (arXiv 2503.14456, section 4.1), from its projections to its gated output.

B batch, T time, D width, H heads of N numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops import matrix_state
from seqzoo.ops.matrix_state import Tokens
from seqzoo.ops.registry import choose
from seqzoo.ops.tensors import unit
from seqzoo.ops.watch import unwatched, watch

FASTEST_DECAY = math.exp(-0.5)  # upper bound of -log w


class LowRank(NamedTuple):
    """A projection x W of R numbers a token, of which only x need be kept.

    Attributes:
        x: (B, T, R), in any type.
        W: (R, D).
    """

    x: Tensor
    W: Tensor

    def product(self) -> Tensor:
        """(B, T, D), in the type of x."""
        return self.x @ self.W.to(self.x.dtype)


class Projections(NamedTuple):
    """Projections of the tokens, (B, T, D) each, in any type. w, a and share are those before w0,
    a0 and v0 are added and the sigmoid is taken."""

    r: Tensor
    w: LowRank
    k: Tensor
    v: Tensor
    a: LowRank
    gate: LowRank
    share: LowRank | None  # of the first layer's values in v; None in the first layer
    v_first: Tensor | None

    def low_rank(self) -> tuple[LowRank | None, ...]:
        """w, a, the gate and share."""
        return self.w, self.a, self.gate, self.share

    def rows(self, which: slice) -> Projections:
        """Those of some rows of the batch."""
        r, k, v = (x[which] for x in (self.r, self.k, self.v))
        w, a, gate = (LowRank(low.x[which], low.W) for low in (self.w, self.a, self.gate))
        share = None if self.share is None else LowRank(self.share.x[which], self.share.W)
        v_first = None if self.v_first is None else self.v_first[which]
        return Projections(r, w, k, v, a, gate, share, v_first)


class Weights(NamedTuple):
    """Parameters of D numbers each; r_k (H, N). Those of the group norm are scale and shift."""

    w0: Tensor
    a0: Tensor
    k_k: Tensor
    k_a: Tensor
    r_k: Tensor
    scale: Tensor
    shift: Tensor
    v0: Tensor | None


def rwkv7(
    given: Projections, S: Tensor, weights: Weights, *, eps: float, beta_max: float
) -> tuple[Tensor, Tensor]:
    """The outputs of T tokens, and the state after the last.

        kappa = k * k_k, of length 1 in each head        a = sigmoid(a0 + a)
        k <- k * (1 + (a - 1) * k_a)                     w = exp(-e^(-1/2) sigmoid(w0 + w))
        v <- v + (v_first - v) * sigmoid(v0 + share)
        S_t = diag(w_t) S_{t-1} - (a_t * kappa_t) (kappa_t^T S_{t-1}) + k_t v_t^T    y_t = r_t S_t

    Then y is normalised in each head, (r . (r_k * k)) v is added, and the sum multiplied by the
    gate. In S_t, a is first multiplied by 1 + (beta_max - 1) w (`seqzoo.mixers.rwkv7`).

    Args:
        S: (B, H, N, N), the state before the first token; float32 or wider.
        eps: of the group norm.
        beta_max: from 1, the paper's, to 2.

    Returns:
        (B, T, D), in the type of the gate, and S.
    """
    watch(lambda: _weights_of_values(given, S, weights, beta_max))
    with unwatched():
        run = choose("rwkv7", S, given.r.shape[1])
        out: tuple[Tensor, Tensor] = run(given, S, weights, eps=eps, beta_max=beta_max)
    return out


def _weights_of_values(given: Projections, S: Tensor, weights: Weights, beta_max: float) -> Tensor:
    """The weight of each value in each output, before the norm, for the first row of the batch:
    (H, T, T)."""
    return matrix_state.weights(_tokens(given.rows(slice(1)), S[:1], weights, beta_max), None)


def naive(
    given: Projections, S: Tensor, weights: Weights, *, eps: float, beta_max: float
) -> tuple[Tensor, Tensor]:
    """The definition, in the type of S."""
    H, N = weights.r_k.shape
    q, k, v, log_w, a, b = _tokens(given, S, weights, beta_max)
    y, S = matrix_state.matrix_state(q, k, v, S, log_w, a=a, b=b, min_log_w=-FASTEST_DECAY)
    r_k, scale, shift = (x.to(S.dtype) for x in (weights.r_k, weights.scale, weights.shift))
    bonus = (q * r_k[:, None] * k).sum(-1, keepdim=True) * v
    y, bonus = (x.transpose(1, 2).flatten(2) for x in (y, bonus))  # (B, T, D)
    y = F.group_norm(y.flatten(0, 1), H, scale, shift, eps).view_as(y)
    gate = given.gate.product()
    return ((y + bonus) * gate.to(S.dtype)).to(gate.dtype), S


def _tokens(given: Projections, S: Tensor, weights: Weights, beta_max: float) -> Tokens:
    """What the recurrence reads."""
    projected = given.r, given.w.product(), given.k, given.v, given.a.product()
    r, w, k, v, a = (x.to(S.dtype) for x in projected)
    w0, a0, k_k, k_a = (x.flatten().to(S.dtype) for x in weights[:4])
    a = torch.sigmoid(a0 + a)
    kappa = k * k_k
    k = k * (1 + (a - 1) * k_a)
    if given.share is not None and given.v_first is not None and weights.v0 is not None:
        share = torch.sigmoid(weights.v0.flatten().to(S.dtype) + given.share.product().to(S.dtype))
        v = torch.lerp(v, given.v_first.to(S.dtype), share)
    log_w = -FASTEST_DECAY * torch.sigmoid(w0 + w)
    if beta_max > 1:
        a = a * (1 + (beta_max - 1) * log_w.exp())
    heads = (
        torch.unflatten(x, 2, S.shape[1:3]).transpose(1, 2) for x in (r, k, v, log_w, a, kappa)
    )
    r, k, v, log_w, a, kappa = heads  # (B, H, T, N)
    kappa = unit(kappa)
    return Tokens(r, k, v, log_w, a * kappa, -kappa)
