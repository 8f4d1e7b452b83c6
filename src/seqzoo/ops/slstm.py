"""The recurrence of sLSTM (Beck et al. 2024, arXiv 2405.04517, eq. 8 to 17).

B batch, T time, H heads of K numbers, D = H K. In each head, with its own matrices R,

    i~, f~, z~, o~ = inputs + R h_{t-1} + bias
    c_t = f c_{t-1} + i z        n_t = f n_{t-1} + i        h_t = o c_t / n_t

    i = e^i~        f = sigmoid(f~) or e^f~        z = tanh(z~)        o = sigmoid(o~)

c and n are kept as (c e^-m, n e^-m, m), where m_t is the larger of log f_t + m_{t-1} and i~_t
(eq. 15 to 17). h does not depend on m, so no gradient goes through it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose

EMPTY = -1e30  # m of the empty state: e^m is zero, and log f + m stays finite


class Cell(NamedTuple):
    """The state after a token, each (B, H, K): the output, c and n over e^m, and m; float32 or
    wider."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor

    def initial(self) -> Cell:
        """The state before the first token, for as many rows: sums of nothing."""
        zeros = torch.zeros_like(self.c)
        return Cell(zeros, zeros, zeros, torch.full_like(zeros, EMPTY))


def slstm(
    inputs: tuple[Tensor, Tensor], R: Tensor, bias: Tensor, cell: Cell, exponential: bool
) -> tuple[Tensor, Cell]:
    """The outputs of T tokens, and the state after the last.

    Args:
        inputs: what the inputs add to i~ and f~, and to z~ and o~, each (H, B, T, 2 K).
        R: (H, 4 K, K), the recurrent weights of i~, f~, z~ and o~; bias: (H, 4 K).
        exponential: whether f is e^f~.

    Returns:
        y (B, T, H, K) and the state, in the type of the state.
    """
    run = choose("slstm", cell.c, inputs[0].shape[2])
    out: tuple[Tensor, Cell] = run(inputs, R, bias, cell, exponential)
    return out


def naive(
    inputs: tuple[Tensor, Tensor], R: Tensor, bias: Tensor, cell: Cell, exponential: bool
) -> tuple[Tensor, Cell]:
    """The definition, token by token. It fetches nothing from the device."""
    h, c, n, m = (part.transpose(0, 1) for part in cell)  # (H, B, K)
    to_i_f, to_z_o = (part.to(c.dtype).unbind(2) for part in inputs)
    R, bias = R.to(c.dtype).mT, bias.to(c.dtype)[:, None]
    ys = []
    for of_i_f, of_z_o in zip(to_i_f, to_z_o, strict=True):
        sums = torch.cat((of_i_f, of_z_o), -1) + torch.baddbmm(bias, h, R)
        i, f, z, o = sums.chunk(4, -1)
        log_f = f if exponential else F.logsigmoid(f)
        before, m = m, torch.maximum(log_f + m, i).detach()
        # m - before is exact where both are near, so that no rounding of m changes c e^m
        f, i = (log_f - (m - before)).exp(), (i - m).exp()
        c, n = f * c + i * z.tanh(), f * n + i
        h = o.sigmoid() * c / n
        ys.append(h)
    y = torch.stack(ys, 2).permute(1, 2, 0, 3)
    return y, Cell(*(part.transpose(0, 1) for part in (h, c, n, m)))
