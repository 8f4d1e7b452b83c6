"""RWKV-6 "Finch" (Peng et al. 2024, arXiv 2404.05892): RWKV-5 with data-dependent mixes and decays.

B batch, T time, D width, H heads of N numbers, R the rank of a low-rank map. Parameter names are
those of the official checkpoints (`att.*`, `ffn.*`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Natural, Positive
from seqzoo.ops.channel import gate, relu2_product
from seqzoo.ops.local import shift_products
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator


class TimeState(NamedTuple):
    """The last token, after the layer norm, and the matrix of every head."""

    shift: Tensor  # (B, D)
    wkv: Tensor  # (B, H, N, N): keys by values, float32 or wider


class ChannelState(NamedTuple):
    """The last token, after the layer norm."""

    shift: Tensor  # (B, D)


class TimeMix(nn.Module):
    """Time mixing (section 4.2): with a bonus u for the current token,

        y_t = r_t (S_{t-1} + diag(u) k_t v_t^T)        S_t = diag(w_t) S_{t-1} + k_t v_t^T

    where w_t = e^(-e^d_t), d_t = time_decay + tanh(x^w A) B; each head's output is normalised,
    times silu(gate).

    Args:
        dim: width D, divisible by n_heads.
        mix_rank: R of the five data-dependent mixes.
        decay_rank: R of the decay.
        layer: index of the block, from 0; the initial decays and mixes depend on it and n_layers.
    """

    time_maa_x: Tensor
    time_maa_w: Tensor
    time_maa_k: Tensor
    time_maa_r: Tensor
    time_maa_g: Tensor

    @checked(combinations.heads_divide_width)
    def __init__(
        self,
        *,
        dim: Count,
        n_heads: Count,
        mix_rank: Count,
        decay_rank: Count,
        layer: Natural,
        n_layers: Count,
    ) -> None:
        super().__init__()
        depth = layer / max(1, n_layers - 1)  # 0 to 1
        height = 1 - layer / n_layers  # 1 to almost 0
        channel = torch.arange(dim)
        ratio = (channel / dim)[None, None]
        along = channel / max(1, dim - 1)  # 0 to 1
        for name in "xwk":
            setattr(self, f"time_maa_{name}", nn.Parameter(1 - ratio**height))
        self.time_maa_v = nn.Parameter(1 - (ratio**height + 0.3 * depth))
        for name in "rg":
            setattr(self, f"time_maa_{name}", nn.Parameter(1 - ratio ** (0.5 * height)))
        self.time_maa_w1 = nn.Parameter(torch.zeros(dim, 5 * mix_rank))
        self.time_maa_w2 = nn.Parameter(torch.empty(5, mix_rank, dim).uniform_(-0.01, 0.01))
        self.time_decay = nn.Parameter((-6 + 5 * along ** (0.7 + 1.3 * depth))[None, None])
        self.time_decay_w1 = nn.Parameter(torch.zeros(dim, decay_rank))
        self.time_decay_w2 = nn.Parameter(torch.empty(decay_rank, dim).uniform_(-0.01, 0.01))
        for parameter in (self.time_decay, self.time_decay_w1, self.time_decay_w2):
            parameter.lr_scale = 2.0  # type: ignore[attr-defined]  # see training/optimizers.py
        bonus = depth * (1 - along) + ((channel + 1) % 3 - 1) * 0.1
        self.time_faaaa = nn.Parameter(bonus.view(n_heads, -1))
        for parameter in (
            self.time_faaaa,
            self.time_maa_w1,
            self.time_maa_w2,
            self.time_decay_w1,
            self.time_decay_w2,
        ):
            parameter.no_decay = True  # type: ignore[attr-defined]
        self.receptance, self.key, self.value, self.output, self.gate = (
            nn.Linear(dim, dim, bias=False) for _ in range(5)
        )
        for linear, gain in (
            (self.receptance, 1.0),
            (self.key, 0.1),
            (self.value, 1.0),
            (self.gate, 0.1),
        ):
            nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(self.output.weight)
        self.ln_x = nn.GroupNorm(n_heads, dim, eps=64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / n_layers) ** 0.7)

    def forward(self, x: Tensor, state: TimeState | None = None) -> tuple[Tensor, TimeState]:
        (B, T, D), last = x.shape, state and state.shift
        (low,), shift = shift_products(x, last, (self.time_maa_x,), (self.time_maa_w1.T,))
        low = torch.tanh(low).view(B * T, 5, -1).transpose(0, 1)  # (5, B T, R)
        moves = (low @ self.time_maa_w2).view(5, B, T, D)
        mixes = [getattr(self, f"time_maa_{name}") for name in "wkvrg"]
        layers = self.key, self.value, self.receptance, self.gate
        weights = self.time_decay_w1.T, *(layer.weight for layer in layers)
        (w, k, v, r, g), _ = shift_products(x, last, mixes, weights, moves)
        d = self.time_decay + torch.tanh(w) @ self.time_decay_w2
        heads = self.time_faaaa.shape
        with torch.autocast(x.device.type, enabled=False):
            r, k, v, d = (t.view(B, T, *heads).transpose(1, 2) for t in (r, k, v, d))
            S = state.wkv if state else accumulator(r, B, *heads, heads[1])
            y, S = matrix_state(r, k, v, S, -d.to(S.dtype).exp(), u=self.time_faaaa.to(S.dtype))
            norm = self.ln_x
            y = head_norm(y, norm.weight, norm.bias, gate=g, eps=norm.eps, centred=True)
        y = self.output(y)
        return y.to(x.dtype), TimeState(shift, S)


class ChannelMix(nn.Module):
    """Channel mixing with a squared ReLU and a receptance gate: RWKV-4's, with
    mixes in the opposite sense. State: the shifted token."""

    @checked()
    def __init__(self, *, dim: Count, mlp_ratio: Positive, layer: Natural, n_layers: Count) -> None:
        super().__init__()
        mix = 1 - ((torch.arange(dim) / dim) ** (1 - layer / n_layers))[None, None]
        self.time_maa_k, self.time_maa_r = nn.Parameter(mix.clone()), nn.Parameter(mix.clone())
        hidden = round(mlp_ratio * dim)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=(hidden / dim) ** 0.5 if hidden > dim else 1.0)
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, state: ChannelState | None = None) -> tuple[Tensor, ChannelState]:
        mixes = (self.time_maa_k, self.time_maa_r)
        weights = (self.key.weight, self.receptance.weight)
        (k, r), shift = shift_products(x, state and state.shift, mixes, weights)
        y = gate(r, relu2_product(k, self.value.weight))
        return y.to(x.dtype), ChannelState(shift)
