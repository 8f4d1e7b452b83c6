"""How the loss depends on earlier tokens: gradients at the embedding.

x_t is the embedded token t, L_t the loss in nats of predicting the token after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.models.language_model import LanguageModel


def dependence(model: LanguageModel, text: Tensor) -> Tensor:
    """Norm of dL_T/dx_t by the distance T - t from 0 up, mean over texts (B, T + 1): (T,)."""
    inputs, targets = text[:, :-1], text[:, -1]
    with _differentiable_embedding(model) as embedded:
        logits, _ = model(inputs)
        loss = F.cross_entropy(logits[:, -1].float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, embedded)
    mean: Tensor = gradient.float().norm(dim=-1).mean(0)
    return mean.flip(0)


def sensitivity(model: LanguageModel, text: Tensor) -> Tensor:
    """Norm of dL_t/dx_s, row t, column s, of one text (1, T + 1): (T, T)."""
    with _differentiable_embedding(model) as embedded:
        logits, _ = model(text[:, :-1])
        losses = F.cross_entropy(logits[0].float(), text[0, 1:], reduction="none")
        gradients = [torch.autograd.grad(loss, embedded, retain_graph=True)[0] for loss in losses]
    return torch.stack([gradient[0].norm(dim=-1) for gradient in gradients])


@contextmanager
def _differentiable_embedding(model: LanguageModel) -> Iterator[list[Tensor]]:
    """Collects the outputs of the embedding inside; each is a leaf that has a gradient."""
    outputs: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    hook = model.embedding.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()
