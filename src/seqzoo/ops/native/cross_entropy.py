"""Cross-entropy in C++: of the logits only the norm of each row is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqzoo.ops.native import backward_pass, call, in_rows, run


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore: int, smoothing: float) -> Tensor:
    """Row by row, in float32 or wider.

    Raises:
        IndexError: a target that is no class.
    """
    V = logits.shape[1]
    targets = targets.long()
    if not ((targets == ignore) | (targets >= 0) & (targets < V)).all():
        raise IndexError(f"a target is outside of the {V} logits of a row")
    loss: Tensor = run(_CrossEntropy, in_rows(logits), targets.contiguous(), ignore, smoothing)
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore: int, smoothing: float) -> Tensor:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        norms, losses = (logits.new_empty(len(logits), dtype=wide) for _ in range(2))
        ctx.given = *logits.shape, ignore, float(smoothing)
        call("cross_entropy_forward", *ctx.given, logits, targets, norms, losses, of=logits.dtype)
        ctx.save_for_backward(logits, targets, norms)
        return losses.sum()

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, norms = ctx.saved_tensors
        of_logits = torch.empty_like(logits)
        given = logits, targets, norms, of_loss.reshape(1), of_logits
        call("cross_entropy_backward", *ctx.given, *given, of=logits.dtype)
        return of_logits, None, None, None
