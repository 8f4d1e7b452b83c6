"""Next-token prediction: the batch and the loss that several tasks share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqzoo.ops.cross_entropy import cross_entropy
from seqzoo.ops.tensors import to_device
from seqzoo.state import State
from seqzoo.tasks.task import Forward

IGNORE = -100  # a target without a loss


class TokenBatch(NamedTuple):
    """Tokens to read and the tokens that follow."""

    inputs: Tensor  # (B, T) tokens
    targets: Tensor  # (B, T) tokens; IGNORE where there is no loss
    fresh: bool
    n_tokens: int
    n_targets: int
    source: tuple[Any, ...] = ()  # of an encoder: tokens (B, S), and B lengths

    def to(self, device: torch.device) -> TokenBatch:
        source = tuple(to_device(x, device) if isinstance(x, Tensor) else x for x in self.source)
        inputs, targets = to_device(self.inputs, device), to_device(self.targets, device)
        return self._replace(inputs=inputs, targets=targets, source=source)


def next_token_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Summed cross-entropy in nats of logits (B, T, V) against targets (B, T)."""
    flat = logits.flatten(0, 1), targets.flatten()
    return cross_entropy(*flat, ignore=IGNORE, smoothing=label_smoothing)


def divergence(logits: Tensor, other: Tensor, targets: Tensor) -> Tensor:
    """The mean of the Kullback-Leibler divergences of two predictions from each other, in nats,
    summed over the targets (B, T); logits (B, T, V)."""
    chosen = targets != IGNORE
    p, q = (x[chosen].float().log_softmax(-1) for x in (logits, other))
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum()


@torch.no_grad()
def replace_by_predictions(
    forward: Forward, batch: TokenBatch, state: State, share: float
) -> TokenBatch:
    """The batch with a share of its target-side inputs replaced by the model's predictions; as it
    is where the share is 0.

    Scheduled sampling (Bengio et al. 2015, arXiv 1506.03099) in two passes (Mihaylova and Martins
    2019, arXiv 1906.07651), which keeps training parallel.
    """
    if not share:
        return batch
    predicted = forward(batch.inputs, state, *batch.source)[0][:, :-1].argmax(-1)
    chosen = to_device(torch.rand(predicted.shape) < share, predicted.device)
    chosen &= batch.targets[:, :-1] != IGNORE
    rest = torch.where(chosen, predicted, batch.inputs[:, 1:])
    return batch._replace(inputs=torch.cat((batch.inputs[:, :1], rest), 1))
