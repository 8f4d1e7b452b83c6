"""RWKV-5 "Eagle" (Peng et al. 2024, arXiv 2404.05892): a matrix a head instead of RWKV-4's vector.

B batch, T time, D width, H heads of N numbers. Parameter names are those of the official
checkpoints (`att.*`). Its channel mixing is RWKV-4's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config import combinations
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Natural
from seqzoo.ops.local import shift_products
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.tensors import accumulator


class TimeState(NamedTuple):
    """The last token, after the layer norm, and the matrix of every head."""

    shift: Tensor  # (B, D)
    wkv: Tensor  # (B, H, N, N): keys by values, float32 or wider


class TimeMix(nn.Module):
    """Time mixing (section 4.1): with a bonus u for the current token,

        y_t = r_t (S_{t-1} + diag(u) k_t v_t^T)        S_t = diag(w) S_{t-1} + k_t v_t^T

    where w = e^(-e^decay) is constant for each channel; each head's output is normalised, times
    silu(gate). A mix is the weight of the current token, as in the official code: 1 - mu of eq. 3.

    Args:
        dim: width D, divisible by n_heads.
        layer: index of the block, from 0; the initial decays and mixes depend on it and n_layers.
    """

    @checked(combinations.heads_divide_width)
    def __init__(self, *, dim: Count, n_heads: Count, layer: Natural, n_layers: Count) -> None:
        super().__init__()
        depth = layer / max(1, n_layers - 1)  # 0 to 1
        height = 1 - layer / n_layers  # 1 to almost 0
        channel = torch.arange(dim)
        ratio = (channel / dim)[None, None]
        along = channel / max(1, dim - 1)  # 0 to 1
        self.time_mix_k = nn.Parameter(ratio**height)
        self.time_mix_v = nn.Parameter(ratio**height + 0.3 * depth)
        self.time_mix_r = nn.Parameter(ratio ** (0.5 * height))
        self.time_mix_g = nn.Parameter(ratio ** (0.5 * height))
        decay = -6 + 5 * along ** (0.7 + 1.3 * depth)
        bonus = depth * (1 - along) + ((channel + 1) % 3 - 1) * 0.1
        self.time_decay = nn.Parameter(decay.view(n_heads, -1))
        self.time_faaaa = nn.Parameter(bonus.view(n_heads, -1))
        self.time_decay.lr_scale = 2.0  # type: ignore[attr-defined]  # see training/optimizers.py
        for parameter in (self.time_decay, self.time_faaaa):
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
        self.ln_x = nn.GroupNorm(
            n_heads, dim, eps=64e-5
        )  # 1e-5 times 8^2, as the official code divides by 8
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / n_layers) ** 0.7)

    def forward(self, x: Tensor, state: TimeState | None = None) -> tuple[Tensor, TimeState]:
        B, T, _ = x.shape
        base = (self.time_mix_r, self.time_mix_k, self.time_mix_v, self.time_mix_g)
        mixes = [1 - mix for mix in base]
        weights = [m.weight for m in (self.receptance, self.key, self.value, self.gate)]
        (r, k, v, g), shift = shift_products(x, state and state.shift, mixes, weights)
        heads = self.time_decay.shape
        with torch.autocast(x.device.type, enabled=False):
            r, k, v = (t.view(B, T, *heads).transpose(1, 2) for t in (r, k, v))
            S = state.wkv if state else accumulator(r, B, *heads, heads[1])
            log_w, u = (-self.time_decay.to(S.dtype).exp()), self.time_faaaa.to(S.dtype)
            y, S = matrix_state(r, k, v, S, log_w[None, :, None], u=u)
            norm = self.ln_x
            y = head_norm(y, norm.weight, norm.bias, gate=g, eps=norm.eps, centred=True)
        y = self.output(y)
        return y.to(x.dtype), TimeState(shift, S)
