"""The recurrences of RNN, LSTM and GRU over a whole chunk.

`naive` is the papers' equations a step at a time; `torch` is oneDNN or cuDNN behind `torch.nn`.
Weights are those of `torch.nn`: w_ih (G D, D_in), w_hh (G D, D), b_ih and b_hh (G D,), the G gates
stacked.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.ops import choose


def elman(cell: nn.RNN, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = tanh(W x_t + b + U h_{t-1} + b') (Elman 1990). x (B, T, D_in), h (B, D) -> y (B, T, D),
    h."""
    if choose("recurrent", x, x.shape[1]) == "torch":
        return _fast(cell, x, h)
    w_ih, w_hh, b_ih, b_hh = cell.all_weights[0]
    ys = []
    for xt in x.unbind(1):
        h = (F.linear(xt, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).tanh()
        ys.append(h)
    return torch.stack(ys, 1), h


def lstm(cell: nn.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_t = f * c_{t-1} + i * g, h_t = o * tanh(c_t) (Hochreiter & Schmidhuber 1997; forget gate:
    Gers et al. 2000).

    x (B, T, D_in), h and c (B, D) -> y (B, T, D), h, c.
    """
    if choose("recurrent", x, x.shape[1]) == "torch":
        with _precise_if_short(x):
            y, (hs, cs) = cell(x, (h[None], c[None]))
        return y, hs[0], cs[0]
    w_ih, w_hh, b_ih, b_hh = cell.all_weights[0]
    ys = []
    for xt in x.unbind(1):
        i, f, g, o = (F.linear(xt, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        ys.append(h)
    return torch.stack(ys, 1), h, c


def gru(cell: nn.GRU, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = (1 - z) n + z h_{t-1}, n = tanh(W x_t + r (U h_{t-1} + b')) (Cho et al. 2014, the reset
    gate after the product as in cuDNN). x (B, T, D_in), h (B, D) -> y (B, T, D), h."""
    if choose("recurrent", x, x.shape[1]) == "torch":
        return _fast(cell, x, h)
    w_ih, w_hh, b_ih, b_hh = cell.all_weights[0]
    ys = []
    for xt in x.unbind(1):
        xr, xz, xn = F.linear(xt, w_ih, b_ih).chunk(3, -1)
        hr, hz, hn = F.linear(h, w_hh, b_hh).chunk(3, -1)
        z = (xz + hz).sigmoid()
        h = (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h
        ys.append(h)
    return torch.stack(ys, 1), h


def _precise_if_short(x: Tensor) -> AbstractContextManager[object]:
    """Few tokens are read in full precision, whatever the autocast: a 16-bit kernel gives back a
    rounded state, and one that is rounded after every token forgets."""
    if x.shape[1] > 16:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _fast(cell: nn.RNN | nn.GRU, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    # On a CPU these two have no 16-bit kernel: autocast converts the weights at every step, which
    # pays off only where a large batch is trained. See `scripts/measure_ops.py`.
    training = torch.is_grad_enabled() and x.shape[0] > 8
    plain = x.device.type == "cpu" and not training
    with torch.autocast("cpu", enabled=False) if plain else _precise_if_short(x):
        y, hs = cell(x, h[None])
    return y, hs[0]
