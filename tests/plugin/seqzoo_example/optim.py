"""An optimiser and a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Positive


class SignDescent(torch.optim.Optimizer):
    """Every weight moves by the learning rate against the sign of its gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


@checked()
def sign(model: nn.Module, *, lr: Positive) -> SignDescent:
    return SignDescent(model.parameters(), {"lr": lr})


@checked()
def halving(*, parts: Count) -> Callable[[int, float], float]:
    """A factor of 1 in the first of `parts` equal parts of the run, and half as much in each next
    one."""
    return lambda step, progress: 0.5 ** min(parts - 1, int(progress * parts))
