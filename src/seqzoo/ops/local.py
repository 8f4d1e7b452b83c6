"""Operations on a fixed number of past tokens.

B batch, T time, D channels, W taps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose


def shift_products(
    x: Tensor,
    last: Tensor | None,
    mixes: Sequence[Tensor],
    weights: Sequence[Tensor],
    moves: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Products of matrices with mixes of each token and the one before it: x_t + m (x_{t-1} - x_t)
    for each share m. The mixes need not be kept.

    Args:
        x: (B, T, D).
        last: (B, D), the token before the first; None: zeros.
        mixes: the shares m of the token before, n times D numbers.
        weights: a matrix (N, D) for each mix.
        moves: (n, B, T, D), what each token adds to its shares; None: nothing.

    Returns:
        For each matrix (B, T, N); and the last token of x, (B, D).
    """
    first = x.new_zeros(x[:, 0].shape) if last is None else last.to(x.dtype)
    shares = torch.stack([m.flatten() for m in mixes]).to(x.dtype)
    run = choose("shift_products", x, x.shape[1])
    products: tuple[Tensor, ...] = run(x, first, shares, moves, *weights)
    return products, x[:, -1].clone()  # a view would keep the whole chunk in memory


def naive_shift_products(
    x: Tensor, last: Tensor, mixes: Tensor, moves: Tensor | None, *weights: Tensor
) -> tuple[Tensor, ...]:
    """The definition, for mixes (n, D)."""
    before = torch.cat((last[:, None], x[:, :-1]), 1)
    shares = mixes[:, None, None] if moves is None else mixes[:, None, None] + moves.to(x.dtype)
    return tuple(
        F.linear(torch.lerp(x, before, m), W) for m, W in zip(shares, weights, strict=True)
    )


def causal_conv(x: Tensor, weight: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """A convolution along time, each channel by itself: y_t = sum_i weight_i x_{t - W + 1 + i}.

    Args:
        x: (B, T, D), in any type; weight: (D, W).
        seen: (B, W - 1, D), the tokens before the first; None: zeros.

    Returns:
        (B, T, D), and the last W - 1 tokens, (B, W - 1, D), in float32 or wider.
    """
    (B, T, D), W = x.shape, weight.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    before = x.new_zeros(B, W - 1, D, dtype=dtype) if seen is None else seen.to(dtype)
    taps = weight.to(dtype).T.contiguous()
    y: Tensor = choose("causal_conv", before, T)(x, before, taps)
    newest = x[:, T - W + 1 :] if W - 1 <= T else torch.cat((before, x), 1)[:, T:]
    return y, newest.to(dtype, copy=True)


def naive_causal_conv(x: Tensor, before: Tensor, taps: Tensor) -> Tensor:
    """The definition, for taps (W, D) and W - 1 tokens before x."""
    padded, T = torch.cat((before, x), 1), x.shape[1]
    y = padded[:, :T] * taps[0]
    for i in range(1, len(taps)):
        y = torch.addcmul(y, padded[:, i : i + T], taps[i])
    return y
