"""Cross-entropy in C++: of the logits only the norm of each row is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqzoo.ops.native import call, in_rows


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore: int, smoothing: float) -> Tensor:
    """Row by row, in float32 or wider."""
    loss: Tensor = _CrossEntropy.apply(in_rows(logits), targets.contiguous(), ignore, smoothing)  # type: ignore[no-untyped-call]
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
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, of_logits = ctx.saved_tensors[0], torch.empty_like(ctx.saved_tensors[0])
        given = *ctx.given, *ctx.saved_tensors, of_loss.reshape(1), of_logits
        call("cross_entropy_backward", *given, of=logits.dtype)
        return of_logits, None, None, None
