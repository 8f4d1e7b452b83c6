"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048): time mixing and channel mixing, after the paper's
own code.

Parameter names are those of the official checkpoints (`att.*`, `ffn.*`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Natural, Positive
from seqzoo.ops.channel import gate, relu2_product
from seqzoo.ops.local import shift_products
from seqzoo.ops.tensors import float32_or_wider
from seqzoo.ops.wkv4 import WKVState, empty_state, wkv4


class TimeState(NamedTuple):
    """The last token, after the layer norm, and the wkv accumulators: 4 D numbers."""

    shift: Tensor  # (B, D)
    wkv: WKVState


class ChannelState(NamedTuple):
    """The last token, after the layer norm."""

    shift: Tensor  # (B, D)


class TimeMix(nn.Module):
    """Time mixing (eq. 11-18). State: the shifted token and the accumulators aa, bb, pp.

    Args:
        dim: width D.
        layer: index of the block, from 0; the initial decays and mixes depend on it and n_layers.
    """

    @checked()
    def __init__(self, *, dim: Count, layer: Natural, n_layers: Count) -> None:
        super().__init__()
        depth = layer / max(1, n_layers - 1)  # 0 to 1
        height = 1 - layer / n_layers  # 1 to almost 0
        channel = torch.arange(dim)
        speed = -5 + 8 * (channel / max(1, dim - 1)) ** (0.7 + 1.3 * depth)
        zigzag = ((channel + 1) % 3 - 1) * 0.5
        ratio = channel / dim
        self.time_decay = nn.Parameter(speed)
        self.time_first = nn.Parameter(math.log(0.3) + zigzag)
        self.time_mix_k = nn.Parameter((ratio**height)[None, None])
        self.time_mix_v = nn.Parameter((ratio**height + 0.3 * depth)[None, None])
        self.time_mix_r = nn.Parameter((ratio ** (0.5 * height))[None, None])
        self.key, self.value, self.receptance, self.output = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )
        for linear in (self.key, self.receptance, self.output):
            nn.init.zeros_(linear.weight)
        nn.init.orthogonal_(self.value.weight)
        _learn_faster(self.time_decay, 2.0)
        _learn_faster(self.time_first, 3.0)

    def forward(self, x: Tensor, state: TimeState | None = None) -> tuple[Tensor, TimeState]:
        mixes = (1 - self.time_mix_k, 1 - self.time_mix_v, 1 - self.time_mix_r)
        weights = (self.key.weight, self.value.weight, self.receptance.weight)
        (k, v, r), shift = shift_products(x, state and state.shift, mixes, weights)
        with torch.autocast(x.device.type, enabled=False):
            decay, u = float32_or_wider(self.time_decay, self.time_first)
            wkv = state.wkv if state else empty_state(k)
            y, wkv = wkv4(k, v, -decay.exp(), u, wkv, r)
        y = self.output(y)
        return y.to(x.dtype), TimeState(shift, wkv)


class ChannelMix(nn.Module):
    """Channel mixing with a squared ReLU and a receptance gate (eq. 19-22). State: the shifted
    token."""

    @checked()
    def __init__(self, *, dim: Count, mlp_ratio: Positive, layer: Natural, n_layers: Count) -> None:
        super().__init__()
        height = 1 - layer / n_layers
        mix = ((torch.arange(dim) / dim) ** height)[None, None]
        self.time_mix_k = nn.Parameter(mix.clone())
        self.time_mix_r = nn.Parameter(mix.clone())
        hidden = round(mlp_ratio * dim)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=(hidden / dim) ** 0.5 if hidden > dim else 1.0)
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, state: ChannelState | None = None) -> tuple[Tensor, ChannelState]:
        mixes = (1 - self.time_mix_k, 1 - self.time_mix_r)
        weights = (self.key.weight, self.receptance.weight)
        (k, r), shift = shift_products(x, state and state.shift, mixes, weights)
        y = gate(r, relu2_product(k, self.value.weight))
        return y.to(x.dtype), ChannelState(shift)


def _learn_faster(parameter: nn.Parameter, factor: float) -> None:
    parameter.lr_scale = factor  # type: ignore[attr-defined]  # for the optimiser's groups
