"""Operations on a fixed number of past tokens.

B batch, T time, D channels, W taps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.registry import choose


def token_shift(x: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
    """x shifted by one token: position t holds token t - 1.

    Args:
        x: (B, T, D).
        last: (B, D), the token before the first; None: zeros.

    Returns:
        (B, T, D), and the last token of x, (B, D).
    """
    first = torch.zeros_like(x[:, :1]) if last is None else last[:, None].to(x.dtype)
    after = x[:, -1].clone()  # a view would keep the whole chunk in memory
    return torch.cat((first, x[:, :-1]), 1), after


def shift_mixes(
    x: Tensor, last: Tensor | None, *mixes: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Mixes of each token with the one before it: x_t + m (x_{t-1} - x_t) for each m.

    Args:
        x: (B, T, D).
        last: (B, D), the token before the first; None: zeros.
        mixes: the shares m of the token before, each of D numbers.

    Returns:
        For each m (B, T, D), for a matrix product: perhaps in the type that autocast gives those;
        and the last token of x, (B, D).
    """
    given = _tokens_and_shares(x, last, mixes)
    mixed: tuple[Tensor, ...] = choose("token_shift", x, x.shape[1])(*given)
    return mixed, x[:, -1].clone()  # a view would keep the whole chunk in memory


def shift_products(
    x: Tensor, last: Tensor | None, mixes: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Products of matrices with the mixes of `shift_mixes`, which need not be kept.

    Args:
        x, last, mixes: as in `shift_mixes`.
        weights: a matrix (N, D) for each mix.

    Returns:
        For each matrix (B, T, N); and the last token of x, (B, D).
    """
    given = _tokens_and_shares(x, last, mixes)
    products: tuple[Tensor, ...] = choose("shift_products", x, x.shape[1])(*given, *weights)
    return products, x[:, -1].clone()


def _tokens_and_shares(
    x: Tensor, last: Tensor | None, mixes: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """What forms take: x, the token before it, and the mixes as (n, D)."""
    first = x.new_zeros(x[:, 0].shape) if last is None else last.to(x.dtype)
    return x, first, torch.stack([m.flatten() for m in mixes]).to(x.dtype)


def naive_shift_mixes(x: Tensor, last: Tensor, mixes: Tensor) -> tuple[Tensor, ...]:
    """The definition, for mixes (n, D)."""
    before, _ = token_shift(x, last)
    return tuple(torch.lerp(x, before, m) for m in mixes)


def naive_shift_products(
    x: Tensor, last: Tensor, mixes: Tensor, *weights: Tensor
) -> tuple[Tensor, ...]:
    """The definition, for mixes (n, D)."""
    mixed = naive_shift_mixes(x, last, mixes)
    return tuple(F.linear(m, W) for m, W in zip(mixed, weights, strict=True))


def causal_conv(x: Tensor, weight: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """A convolution along time, each channel by itself: y_t = sum_i weight_i x_{t - W + 1 + i}.

    Args:
        x: (B, T, D); weight: (D, W).
        seen: (B, W - 1, D), the tokens before the first; None: zeros.

    Returns:
        (B, T, D), and the last W - 1 tokens, (B, W - 1, D).
    """
    (B, T, D), W = x.shape, weight.shape[1]
    before = x.new_zeros(B, W - 1, D) if seen is None else seen.to(x.dtype)
    taps = weight.to(x.dtype).T.contiguous()
    y: Tensor = choose("causal_conv", x, T)(x, before, taps)
    newest = x[:, T - W + 1 :] if W - 1 <= T else torch.cat((before, x), 1)[:, T:]
    return y, newest.clone()


def naive_causal_conv(x: Tensor, before: Tensor, taps: Tensor) -> Tensor:
    """The definition, for taps (W, D) and W - 1 tokens before x."""
    padded, T = torch.cat((before, x), 1), x.shape[1]
    y = padded[:, :T] * taps[0]
    for i in range(1, len(taps)):
        y = torch.addcmul(y, padded[:, i : i + T], taps[i])
    return y
