"""The recurrence of a vector, element by element: h_t = a_t h_{t-1} + b_t.

B batch, T time, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.registry import choose


def linear_scan(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """All states h_1 to h_T.

    Args:
        a, b: (B, T, D), float32 or wider; h: (B, D), the state before the first token.

    Returns:
        (B, T, D)
    """
    states: Tensor = choose("linear_scan", a, a.shape[1])(a, b, h)
    return states


def naive(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """The definition, token by token."""
    hs = []
    for at, bt in zip(a.unbind(1), b.unbind(1), strict=True):
        h = at * h + bt
        hs.append(h)
    return torch.stack(hs, 1)


def scan(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """An associative scan in log2 T steps, each of which doubles `span`: position t holds the
    composition of the last `span` updates, a as their product and b as their effect."""
    b = torch.cat((b[:, :1] + a[:, :1] * h[:, None], b[:, 1:]), 1)
    span = 1
    while span < a.shape[1]:
        b = torch.cat((b[:, :span], b[:, span:] + a[:, span:] * b[:, :-span]), 1)
        a = torch.cat((a[:, :span], a[:, span:] * a[:, :-span]), 1)
        span *= 2
    return b


def loop(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """One fused operation for each token, forward and backward: the fastest form on a CPU, as each
    state is read again while it is in the cache."""
    states: Tensor = _Loop.apply(a, b, h)  # type: ignore[no-untyped-call]
    return states


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        at, bt = (x.transpose(0, 1).contiguous() for x in (a, b))  # (T, B, D)
        states = torch.empty_like(bt)
        before = h
        for t in range(len(at)):
            torch.addcmul(bt[t], at[t], before, out=states[t])
            before = states[t]
        ctx.save_for_backward(at, states, h)
        return states.transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at, states, h = ctx.saved_tensors
        g = gradients[0].transpose(0, 1).clone(memory_format=torch.contiguous_format)
        for t in range(len(at) - 2, -1, -1):  # g becomes the gradient of b
            torch.addcmul(g[t], at[t + 1], g[t + 1], out=g[t])
        before = torch.cat((h[None], states[:-1]))
        return (g * before).transpose(0, 1), g.transpose(0, 1), at[0] * g[0]
