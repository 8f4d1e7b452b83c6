"""An optimiser and a schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Positive


class SignDescent(torch.optim.Optimizer):
    """Every weight moves by the learning rate against the sign of its gradient."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad.sign(), alpha=-group["lr"])


@checked()
def sign(model: nn.Module, *, lr: Positive) -> SignDescent:
    return SignDescent([{"params": list(model.parameters())}], {"lr": lr})


class Halving:
    """The factor halves at every n-th part of the run."""

    @checked()
    def __init__(self, *, parts: Count) -> None:
        self.parts = parts

    def __call__(self, step: int, progress: float) -> float:
        return 0.5 ** int(progress * self.parts)
