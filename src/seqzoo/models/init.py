"""Initial values of embedding and head. Mixers initialise themselves."""

from __future__ import annotations

from torch import nn


def normal(embedding: nn.Embedding, head: nn.Linear) -> None:
    """Normal(0, 0.02) for both, as GPT-2."""
    nn.init.normal_(embedding.weight, std=0.02)
    nn.init.normal_(head.weight, std=0.02)


def uniform(embedding: nn.Embedding, head: nn.Linear) -> None:
    """Uniform +-0.1 for both, as the recurrent language models of Merity et al. 2017 (arXiv
    1708.02182)."""
    nn.init.uniform_(embedding.weight, -0.1, 0.1)
    nn.init.uniform_(head.weight, -0.1, 0.1)


def rwkv(embedding: nn.Embedding, head: nn.Linear, bound: float = 1e-4) -> None:
    """A tiny embedding, scaled up by the layer norm that follows it, and an orthogonal head, as
    RWKV-5 to RWKV-7."""
    nn.init.uniform_(embedding.weight, -bound, bound)
    vocab, dim = head.weight.shape
    if head.weight is not embedding.weight:
        nn.init.orthogonal_(head.weight, gain=0.5 * max(1.0, vocab / dim) ** 0.5)


def rwkv4(embedding: nn.Embedding, head: nn.Linear) -> None:
    """As `rwkv`, with a larger embedding. The official code of RWKV-4 draws it between minus and
    plus the initial learning rate; here the bound is 1e-3, whatever the rate."""
    rwkv(embedding, head, bound=1e-3)
