"""Causal linear attention: an RNN with a matrix state that trains in parallel.

B batch, T time, D width, H heads of K numbers, M features.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.linear_attention import EPS, heads, linear_attention, normalised
from seqzoo.ops.matrix_state import matrix_state, turned_matrix_state
from seqzoo.ops.tensors import accumulator, float32_or_wider
from seqzoo.ops.watch import unwatched, watch


class AttentionMemory(NamedTuple):
    """The sums of eq. 18 and 19 for M features, in float32 or wider."""

    S: Tensor  # (B, H, M, K): attention memory
    z: Tensor  # (B, H, M): normaliser; (B, H, 0) where there is none


class LinearAttention(nn.Module):
    """Causal linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 16-20).

        S_t = g S_{t-1} + phi(k_t) v_t^T        z_t = g z_{t-1} + phi(k_t)
        y_t = phi(q_t) S_t / (phi(q_t) . z_t + 1e-6)

    No 1/sqrt(K), as in the paper. Projections have biases, as in the authors' code.

    Args:
        dim: width D, divisible by n_heads.
        feature: phi, from the K numbers of a head to M features, one of FEATURES.
        position: with `rope`, mapped queries and keys are turned in the numerator only (Su et al.
            2021, eq. 19). The memory is kept relative to the next token, so no position is stored.
        decay: `none` is the paper's sum over all tokens, g = 1; with `retention` g = 1 - 2^-e, e
            from 1 for the first head to 7 for the last, or for a single head: half-lives from 1 to
            about 90 tokens, so that the state stays bounded on streams of any length (after Sun et
            al. 2023, arXiv 2307.08621, where e is 5 + h).
        normaliser: `sum` is the paper's z; `rms` divides the output of every head by its root mean
            square instead (Qin et al. 2022, arXiv 2210.10340, NormAttention).
        chunk: tokens in a chunk, which matrix products read at once.
    """

    begins_with_product = True
    decay: Tensor  # (H, 1, 1): log g

    @checked(
        combinations.heads_divide_width,
        combinations.even_heads_for_rope,
        combinations.even_features_for_rope,
    )
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        feature: Literal["elu", "relu", "learned", "taylor"],
        position: Literal["rope", "learned", "sinusoidal", "none"],
        decay: Literal["none", "retention"],
        normaliser: Literal["sum", "rms"],
        chunk: Count,
    ) -> None:
        super().__init__()
        self.n_heads, self.normaliser, self.chunk = n_heads, normaliser, chunk
        self.rope = position == "rope"
        self.divides_by_sum = normaliser == "sum" and not self.rope  # z is one more column of S
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feature = FEATURES[feature](dim // n_heads)
        rates = torch.zeros(n_heads)
        fastest = 1 if n_heads > 1 else 7
        if decay == "retention":
            rates = torch.log1p(-(2.0 ** -torch.linspace(fastest, 7, n_heads)))
        self.register_buffer("decay", rates[:, None, None], persistent=False)
        self.min_log_w = math.log1p(-(2.0**-fastest)) if decay == "retention" else 0.0

    def forward(
        self, x: Tensor, state: AttentionMemory | None = None
    ) -> tuple[Tensor, AttentionMemory]:
        qkv = self.qkv(x)
        with torch.autocast(x.device.type, enabled=False):
            watch(lambda: self._weights(qkv[:1]))
            with unwatched():
                from_projections = isinstance(self.feature, Elu) and self.divides_by_sum
                attend = self._from_projections if from_projections else self._from_features
                y, memory = attend(qkv, state)
        return self.out(y.to(x.dtype)).to(x.dtype), memory

    def _from_projections(
        self, qkv: Tensor, state: AttentionMemory | None
    ) -> tuple[Tensor, AttentionMemory]:
        """y (B, T, D); what reads the projections makes the features."""
        H, K = self.n_heads, qkv.shape[-1] // (3 * self.n_heads)
        both = accumulator(qkv, len(qkv), H, K, K + 1) if state is None else joined(state)
        more = {"min_log_w": self.min_log_w, "chunk": self.chunk}
        y, both = linear_attention(qkv, both, self.decay.flatten(), **more)
        return y, AttentionMemory(both[..., :K], both[..., K])

    def _from_features(
        self, qkv: Tensor, state: AttentionMemory | None
    ) -> tuple[Tensor, AttentionMemory]:
        """The same, from features of any kind."""
        q, k, v = self._mapped(qkv)
        (B, H, _, M), K = q.shape, v.shape[-1]
        S, z = state or (q.new_zeros(B, H, M, K), q.new_zeros(B, H, M))
        y, S, z = self._attend(q, k, v, S, z)
        if self.normaliser == "rms":
            y = F.rms_norm(y, (K,))
        return y.transpose(1, 2).flatten(2), AttentionMemory(S, z)

    def _mapped(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features of queries and keys, and the values: (B, H, T, M or K)."""
        q, k, v = heads(qkv, self.n_heads)
        q, k = (self.feature(x) for x in float32_or_wider(q, k))
        return q, k, v

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, S: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted sums of the values, divided by z where it is the normaliser; then S and
        z."""
        decay, V = self.decay.to(q.dtype)[None], v.shape[-1]
        more: dict[str, Any] = {"min_log_w": self.min_log_w, "chunk": self.chunk}
        if self.divides_by_sum:
            y, both = normalised(q, k, v, joined(AttentionMemory(S, z)), decay.flatten(), **more)
            return y, both[..., :V], both[..., V]
        read = turned_matrix_state if self.rope else matrix_state
        y, S = read(q, k, v, S, decay, **more)
        if self.normaliser == "rms":
            return y, S, z.new_zeros(*z.shape[:2], 0)
        # z is a sum of keys that are not turned, as it must stay positive
        total, column = matrix_state(q, k, torch.ones_like(v[..., :1]), z[..., None], decay, **more)
        return y / (total + EPS), S, column[..., 0]

    def _weights(self, qkv: Tensor) -> Tensor:
        """The weight of each value in each output, from the empty state, for the first row of the
        batch: (H, T, T)."""
        q, k, _ = self._mapped(qkv)
        _, H, T, M = q.shape
        values = torch.eye(T).to(q).expand(1, H, T, T)
        empty = q.new_zeros(1, H, M, T), q.new_zeros(1, H, M)
        return self._attend(q, k, values, *empty)[0][0]


def joined(memory: AttentionMemory) -> Tensor:
    """(B, H, M, K + 1), z one more column of S."""
    return torch.cat((memory.S, memory.z[..., None]), -1)


# ---- feature maps (.., K) -> (.., M); the product of any two features is never negative


class Elu(nn.Module):
    """elu + 1 (Katharopoulos et al. 2020, eq. 7)."""

    def __init__(self, size: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1


class Relu(nn.Module):
    """max(x, 0). The output of a query that shares no positive feature with a key is zero."""

    def __init__(self, size: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Learned(nn.Module):
    """Softmax of W x, concatenated with softmax of -W x; W starts as the identity; M = 2 K (Zhang
    et al. 2024, arXiv 2402.04347, section 4.2, in the softmax form of their code).

    Deviations: queries, keys and all heads of a layer share W, and it is trained with the rest of
    the model instead of distilled.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.map = nn.Linear(size, size, bias=False)
        nn.init.eye_(self.map.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.map(x.to(self.map.weight.dtype)).to(x.dtype)
        return torch.cat((x.softmax(-1), (-x).softmax(-1)), -1)


class Taylor(nn.Module):
    """Features whose product is 1 + s + s^2 / 2 with s = q.k / sqrt(K), always positive; M = 1 + K
    + K^2, so heads should be small: 16 in the paper (Arora et al. 2024, arXiv 2402.18668, section
    4.1)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = size**-0.25

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        squares = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
        return torch.cat((torch.ones_like(x[..., :1]), x, squares), -1)


FEATURES = {"elu": Elu, "relu": Relu, "learned": Learned, "taylor": Taylor}
