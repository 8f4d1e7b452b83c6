"""The model as training calls it: in which precision, and with what around it.

This is the one place to wrap the model: activation checkpointing, then compilation, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqzoo.state import State
from seqzoo.training.device import autocast


class Forward:
    """``forward(inputs, state, *more)``: the model under autocast.

    Args:
        dtype: `bfloat16` or `float32`; the parameters stay in float32.
        checkpointing: recompute each block in the backward pass, and keep only its inputs.
        compile: compile each block.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: str,
        *,
        checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        self.model, self.device, self.dtype, self.compile = model, device, dtype, compile
        blocks: Any = model.blocks
        for block in blocks:
            if checkpointing:
                _recompute(block)
            if compile:
                block.compile()

    def __call__(self, inputs: Tensor, state: State, *more: Any) -> tuple[Tensor, State]:
        with autocast(self.device, self.dtype):
            output: tuple[Tensor, State] = self.model(inputs, state, *more)
        return output

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Inside, autocast is on and nothing is compiled: evaluations and samples have lengths and
        states for which no block was compiled."""
        stance = torch.compiler.set_stance("force_eager") if self.compile else nullcontext()
        with autocast(self.device, self.dtype), stance:
            yield


def _recompute(block: nn.Module) -> None:
    """Have a block keep only its inputs for the backward pass (Chen et al. 2016, arXiv 1604.06174).

    Dropout draws the same masks again, and the random numbers after it are the same as without.
    """
    inner = block.forward

    def forward(*args: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return inner(*args)
        return checkpoint(inner, *args, use_reentrant=False)

    block.forward = forward
