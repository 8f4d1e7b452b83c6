"""The recurrences of RNN, LSTM and GRU over a whole chunk.

B batch, T time, D width. Weights are those of `torch.nn`: w_ih (G D, D_in), w_hh (G D, D), b_ih and
b_hh (G D,), with the G gates stacked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.ops.registry import choose


def recurrent(cell: nn.RNNBase, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """Read x (B, T, D_in) after a state: h (B, D), and for an LSTM also c (B, D).

    Returns:
        y (B, T, D), then the state after the last token.
    """
    operation = "lstm" if isinstance(cell, nn.LSTM) else "recurrent"
    out: tuple[Tensor, ...] = choose(operation, x, x.shape[1])(cell, x, *state)
    return out


def naive(cell: nn.RNNBase, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """The papers' equations, token by token."""
    step = STEPS[cell.mode]
    w_ih, w_hh, b_ih, b_hh = cell.all_weights[0]
    ys = []
    for x_t in x.unbind(1):
        inputs, recurrence = F.linear(x_t, w_ih, b_ih), F.linear(state[0], w_hh, b_hh)
        state = step(inputs, recurrence, *state)
        ys.append(state[0])
    return torch.stack(ys, 1), *state


def elman_step(inputs: Tensor, recurrence: Tensor, h: Tensor) -> tuple[Tensor]:
    """h_t = tanh(W x_t + b + U h_{t-1} + b') (Elman 1990). Inputs W x_t + b (B, D), recurrence
    U h_{t-1} + b' (B, D)."""
    return ((inputs + recurrence).tanh(),)


def lstm_step(inputs: Tensor, recurrence: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """c_t = f * c_{t-1} + i * g, h_t = o * tanh(c_t) (Hochreiter & Schmidhuber 1997; forget gate:
    Gers et al. 2000). Inputs and recurrence (B, 4 D)."""
    i, f, g, o = (inputs + recurrence).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(inputs: Tensor, recurrence: Tensor, h: Tensor) -> tuple[Tensor]:
    """h_t = (1 - z) n + z h_{t-1}, n = tanh(W x_t + r (U h_{t-1} + b')) (Cho et al. 2014, the reset
    gate after the product as in cuDNN). Inputs and recurrence (B, 3 D)."""
    xr, xz, xn = inputs.chunk(3, -1)
    hr, hz, hn = recurrence.chunk(3, -1)
    z = (xz + hz).sigmoid()
    return ((1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h,)


STEPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "RNN_TANH": elman_step,
    "LSTM": lstm_step,
    "GRU": gru_step,
}


def fused(cell: nn.RNNBase, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """The kernels of oneDNN and cuDNN, behind `torch.nn`."""
    with _precision(cell, x):
        if isinstance(cell, nn.LSTM):
            y, after = cell(x, tuple(s[None] for s in state))
            return y, *(s[0] for s in after)
        y, h = cell(x, state[0][None])
        return y, h[0]


def _precision(cell: nn.RNNBase, x: Tensor) -> AbstractContextManager[object]:
    """Where to switch autocast off.

    For few tokens always: a 16-bit kernel returns a rounded state, and rounding after every token
    forgets. On a CPU, RNN and GRU have no 16-bit kernel, and autocast converts their weights at
    every step, which is worth it only in training with a large batch (`scripts/measure_ops.py`).
    """
    training = torch.is_grad_enabled() and x.shape[0] > 8
    if x.device.type == "cpu" and not training and not isinstance(cell, nn.LSTM):
        return torch.autocast("cpu", enabled=False)
    if x.shape[1] <= 16:
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
