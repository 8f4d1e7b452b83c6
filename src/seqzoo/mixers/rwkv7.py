"""RWKV-7 "Goose" (Peng et al. 2025, arXiv 2503.14456).

B batch, T time, D width, H heads of N numbers, R the rank of a low-rank map. Parameter names are
those of the official checkpoints (`att.*`, `ffn.*`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Flag, LargestRate, Natural, Positive
from seqzoo.ops.channel import relu2_product
from seqzoo.ops.local import shift_products
from seqzoo.ops.rwkv7 import LowRank, Projections, Weights, rwkv7
from seqzoo.ops.tensors import accumulator


class TimeState(NamedTuple):
    """The last token, after the layer norm, and the matrix of every head."""

    shift: Tensor  # (B, D)
    wkv: Tensor  # (B, H, N, N): keys by values, float32 or wider


class ChannelState(NamedTuple):
    """The last token, after the layer norm."""

    shift: Tensor  # (B, D)


class TimeMix(nn.Module):
    """Time mixing (section 4.1): the delta rule, where each channel has a decay, rate and
    direction.

        S_t = diag(w_t) S_{t-1} - (a_t * kappa_t) (kappa_t^T S_{t-1}) + k_t v_t^T    y_t = r_t S_t

        w = exp(-e^(-1/2) sigmoid(w0 + tanh(x^w w1) w2))        a = sigmoid(a0 + x^a a1 a2)
        kappa = k * k_k, of length 1 in each head               k <- k * (1 + (a - 1) * k_a)
        v <- v + (v_first - v) * sigmoid(v0 + x^v v1 v2)        v_first: v of the first layer

    The sigmoid weighs v_first, as in the official code; the paper's weighs the layer's own v.

    Then y is normalised in each head, (r . (r_k * k)) v is added, and the sum multiplied by
    sigmoid(x^g g1) g2. S is keys by values here, the transpose of the paper's.

    Args:
        dim: width D, divisible by n_heads.
        decay_rank, rate_rank, value_rank, gate_rank: R of w, a, v and g; None: `official_ranks`.
        beta_max: the paper's is 1. Above, a is multiplied by 1 + (beta_max - 1) w in S_t. The
            eigenvalues of diag(w) - (a * kappa) kappa^T, which are real, then reach down to
            (2 - beta_max) w - 1, instead of w - 1: to -1 with 2, so that a layer can count modulo
            two (arXiv 2411.12537), and never below, where a factor of 2 alone could reach w - 2.
        layer: index of the block, from 0; the initial decays and mixes depend on it and n_layers.
        first: whether it is the first of its family, whose values the others read.
    """

    hands_on = True  # the first layer's values

    x_r: Tensor
    x_w: Tensor
    x_k: Tensor
    x_v: Tensor
    x_a: Tensor
    x_g: Tensor
    w0: Tensor
    w1: Tensor
    w2: Tensor
    a0: Tensor
    a1: Tensor
    a2: Tensor
    v0: Tensor
    v1: Tensor
    v2: Tensor
    g1: Tensor
    g2: Tensor

    @checked(combinations.heads_divide_width)
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        decay_rank: Count | None,
        rate_rank: Count | None,
        value_rank: Count | None,
        gate_rank: Count | None,
        beta_max: LargestRate,
        layer: Natural,
        n_layers: Count,
        first: Flag,
    ) -> None:
        super().__init__()
        self.beta_max = beta_max
        depth = layer / max(1, n_layers - 1)  # 0 to 1
        height = 1 - layer / n_layers  # 1 to almost 0
        channel = torch.arange(dim)
        ratio = (channel / dim)[None, None]
        along = (channel / max(1, dim - 1))[None, None]  # 0 to 1
        within = torch.linspace(-1, 1, dim // n_heads).repeat(n_heads)[None, None]
        zigzag, linear = within * within.abs(), along - 0.5
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        for name, power in powers.items():
            setattr(self, f"x_{name}", nn.Parameter(1 - ratio ** (power * height)))
        base = {
            "w": -5.5 + 6 * along ** (1 + depth**0.3) + 2.5 * zigzag,
            "a": -0.19 + 0.3 * zigzag + 0.4 * linear,
            "v": 0.73 - 0.4 * linear,
            "g": None,
        }
        if first:
            del base["v"]
        ranks = (decay_rank, rate_rank, value_rank, gate_rank)
        official = official_ranks(dim)
        sizes = {name: ranks[i] or official[i] for i, name in enumerate("wavg")}
        for name, start in base.items():
            if start is not None:
                setattr(self, f"{name}0", nn.Parameter(start))
            down = nn.Parameter(torch.zeros(dim, sizes[name]))
            up = nn.Parameter(nn.init.orthogonal_(torch.empty(sizes[name], dim), 0.1))
            for number, parameter in ((1, down), (2, up)):
                parameter.no_decay = True  # type: ignore[attr-defined]  # see training/optimizers.py
                setattr(self, f"{name}{number}", parameter)
        self.w0.lr_scale = 2.0  # type: ignore[attr-defined]
        self.k_k = nn.Parameter(0.71 - 0.1 * linear)
        self.k_a = nn.Parameter(torch.full_like(linear, 1.02))
        self.r_k = nn.Parameter(torch.full((n_heads, dim // n_heads), -0.04))
        self.r_k.no_decay = True  # type: ignore[attr-defined]
        self.receptance, self.key, self.value, self.output = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )
        for matrix, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(matrix.weight, gain)
        nn.init.zeros_(self.output.weight)
        self.ln_x = nn.GroupNorm(n_heads, dim, eps=64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / n_layers) ** 0.7)

    def forward(
        self, x: Tensor, state: TimeState | None = None, v_first: Tensor | None = None
    ) -> tuple[Tensor, TimeState, Tensor]:
        """y, the state, and `v_first`: the values (B, T, D) of the first layer, for the next
        layer."""
        B = len(x)
        mixes = [self.x_r, self.x_k, self.x_v, self.x_w, self.x_a, self.x_g]
        weights = [m.weight for m in (self.receptance, self.key, self.value)]
        weights += [self.w1.T, self.a1.T, self.g1.T]
        if v_first is not None:
            mixes.append(self.x_v)
            weights.append(self.v1.T)
        (r, k, v, w, a, g, *share), shift = shift_products(x, state and state.shift, mixes, weights)
        decay, rate = LowRank(torch.tanh(w), self.w2), LowRank(a, self.a2)
        gate = LowRank(torch.sigmoid(g), self.g2)
        of_first = LowRank(share[0], self.v2) if share else None
        given = Projections(r, decay, k, v, rate, gate, of_first, v_first)
        norm = self.ln_x
        v0 = None if v_first is None else self.v0
        parts = (self.w0, self.a0, self.k_k, self.k_a, self.r_k, norm.weight, norm.bias, v0)
        heads = self.r_k.shape
        S = state.wkv if state else accumulator(r, B, *heads, heads[1])
        with torch.autocast(x.device.type, enabled=False):
            y, S = rwkv7(given, S, Weights(*parts), eps=norm.eps, beta_max=self.beta_max)
        y = self.output(y)
        return y.to(x.dtype), TimeState(shift, S), v if v_first is None else v_first


def official_ranks(dim: int) -> tuple[int, int, int, int]:
    """R of w, a, v and g as the official code suggests: multiples of 32."""

    def near(factor: float) -> int:
        return max(32, 32 * int(round(factor * dim**0.5 / 32)))

    return near(2.5), near(2.5), near(1.7), near(5)


class ChannelMix(nn.Module):
    """Channel mixing with a squared ReLU and no gate (section 4.2). State: the shifted token."""

    @checked()
    def __init__(self, *, dim: Count, mlp_ratio: Positive, layer: Natural, n_layers: Count) -> None:
        super().__init__()
        ratio = (torch.arange(dim) / dim)[None, None]
        self.x_k = nn.Parameter(1 - ratio ** ((1 - layer / n_layers) ** 4))
        hidden = round(mlp_ratio * dim)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=(hidden / dim) ** 0.5 if hidden > dim else 1.0)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, state: ChannelState | None = None) -> tuple[Tensor, ChannelState]:
        weights = (self.key.weight,)
        (k,), shift = shift_products(x, state and state.shift, (self.x_k,), weights)
        return relu2_product(k, self.value.weight).to(x.dtype), ChannelState(shift)
