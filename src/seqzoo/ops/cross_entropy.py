"""Cross-entropy of logits.

Where there are many, it is computed for some rows at a time, and again in the backward pass, so
that no copy of all logits is made in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqzoo.ops.registry import choose
from seqzoo.ops.tensors import float32_or_wider

AT_ONCE = 2**18  # logits: a megabyte in float32, which the second-level cache holds


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore: int, smoothing: float) -> Tensor:
    """The sum over rows of -log p(target), in nats, computed in float32 or wider: ().

    Args:
        logits: (N, V); targets: (N,), below V, or `ignore` where a row does not count.
        smoothing: the share of the target that is spread over all V (Szegedy et al. 2016, arXiv
            1512.00567, section 7).
    """
    run = choose("cross_entropy", logits, logits.numel())
    loss: Tensor = run(logits, targets, ignore=ignore, smoothing=smoothing)
    return loss


def naive(logits: Tensor, targets: Tensor, *, ignore: int, smoothing: float) -> Tensor:
    """By torch, all at once."""
    (logits,) = float32_or_wider(logits)
    return F.cross_entropy(
        logits, targets, ignore_index=ignore, reduction="sum", label_smoothing=smoothing
    )


def chunked(logits: Tensor, targets: Tensor, *, ignore: int, smoothing: float) -> Tensor:
    """AT_ONCE logits at a time."""
    loss: Tensor = _CrossEntropy.apply(logits, targets, ignore, smoothing)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore: int, smoothing: float) -> Tensor:
        losses, norms = [], []
        for rows in _chunks(logits):
            (x,), target = float32_or_wider(logits[rows]), targets[rows]
            norm = x.logsumexp(-1)
            likely = x.gather(1, _counted(target, ignore)[:, None])[:, 0]
            if smoothing:
                likely = torch.lerp(likely, x.mean(-1), smoothing)
            losses.append(torch.where(target == ignore, 0.0, norm - likely).sum())
            norms.append(norm)
        ctx.save_for_backward(logits, targets, torch.cat(norms))
        ctx.ignore, ctx.smoothing = ignore, smoothing
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, norms = ctx.saved_tensors
        of_logits = torch.empty_like(logits)
        for rows in _chunks(logits):
            (x,), target = float32_or_wider(logits[rows]), targets[rows]
            g = (x - norms[rows, None]).exp_()
            if ctx.smoothing:
                g -= ctx.smoothing / logits.shape[1]
            share = torch.full_like(g[:, :1], ctx.smoothing - 1)
            g.scatter_add_(1, _counted(target, ctx.ignore)[:, None], share)
            of_logits[rows] = g * torch.where(target == ctx.ignore, 0.0, of_loss)[:, None]
        return of_logits, None, None, None


def _counted(targets: Tensor, ignore: int) -> Tensor:
    """Targets that can be looked up; of the rows that do not count any."""
    return torch.where(targets == ignore, 0, targets)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """All rows, AT_ONCE logits at a time."""
    rows = max(1, AT_ONCE // logits.shape[1])
    return (slice(i, i + rows) for i in range(0, max(1, len(logits)), rows))
