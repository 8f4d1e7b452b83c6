"""One training step: forward, loss, backward, clipping, and the optimiser's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seqzoo import state as states
from seqzoo.state import State


class StepResult(NamedTuple):
    """What a step leaves. Both tensors are on the device: nothing has waited for them."""

    loss: Tensor  # (), detached: the mean over the targets
    grad_norm: Tensor  # (), before clipping
    state: State  # to be carried into the next step; None where none is
    tokens: int  # read, padding left out


def take_step(
    forward: Callable[..., tuple[Tensor, State]],
    objective: Callable[..., tuple[Tensor, State]],
    optimizer: Optimizer,
    parameters: Iterable[nn.Parameter],
    batches: Sequence[Any],
    state: State,
    *,
    device: torch.device,
    progress: float = 0.0,
    carries: bool,
    grad_clip: float | None,
) -> StepResult:
    """Change the parameters by the gradient of the mean loss over the targets of some batches.

    Fetches nothing from the device.

    Args:
        forward: the model as `training.forward.Forward` calls it.
        objective: `Task.objective`: the summed loss of a batch, and the state after it.
        batches: micro-batches, whose gradients are added up.
        state: left by the last step; a batch that is `fresh` does not read it.
        progress: the share of the run that is over, 0 to 1.
        carries: whether a batch goes on from the state that the last one left.
        grad_clip: the largest norm of the gradient; None: no clipping.
    """
    targets = sum(batch.n_targets for batch in batches)
    step_loss = torch.zeros((), device=device)
    for batch in batches:
        before = None if batch.fresh else state
        loss, state = objective(forward, batch.to(device), before, progress=progress)
        (loss / targets).backward()
        state = states.detach(state) if carries else None  # truncated back-propagation stops here
        step_loss += loss.detach() / targets
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if grad_clip is None else grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(step_loss, norm, state, sum(batch.n_tokens for batch in batches))
