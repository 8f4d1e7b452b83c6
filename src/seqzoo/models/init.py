"""How embedding and head begin. Mixers initialise themselves."""

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
