"""A mixer of one's own, in one file: check that it obeys the laws, then train it.

    python examples/own_mixer.py trainer.max_seconds=30

The arguments are those of `seqzoo train`. The default values are in examples/configs/model, one
file a model. On the command line the same file is a plugin:

    PYTHONPATH=examples seqzoo train plugins=[own_mixer] model=gated_mean
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import seqzoo
from seqzoo import laws
from seqzoo.config import plugins
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.models.zoo import Family


class MeanState(NamedTuple):
    """What has been read. Every tensor of a state has the batch first, and is float32 or wider."""

    total: Tensor  # (B, D) sum of the values
    n_tokens: Tensor  # (B, 1)


class GatedMean(nn.Module):
    """y_t = W (sigmoid(G x_t) * m_t), where m_t is the mean of V x_1 to V x_t.

    `checked` refuses wrong values, on the command line too, by the annotations: Count is a whole
    number from 1 up.
    """

    @checked()
    def __init__(self, *, dim: Count) -> None:
        super().__init__()
        self.values = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: MeanState | None = None) -> tuple[Tensor, MeanState]:
        v, gate = self.values(x), self.gate(x).sigmoid()  # (B, T, D)
        v = v if v.dtype == torch.float64 else v.float()  # sums are not rounded to 16 bits
        if state is None:
            state = MeanState(torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0, :1]))
        totals = state.total[:, None] + v.cumsum(1)  # (B, T, D)
        counts = state.n_tokens[:, None] + torch.ones_like(v[..., :1]).cumsum(1)  # (B, T, 1)
        y = self.out((gate * totals / counts).to(x.dtype)).to(x.dtype)
        return y, MeanState(totals[:, -1].clone(), counts[:, -1].clone())


plugin = plugins.Plugin(
    # prenorm: x + mixer(norm(x)), then the same with an MLP
    models={"gated_mean": Family(f"{__name__}:GatedMean", "prenorm")},
    configs=Path(__file__).parent / "configs",
)


def main() -> None:
    plugins.use([__name__])
    if not laws.verify(["gated_mean"]):
        sys.exit("the mixer breaks a law")
    run = seqzoo.train("model=gated_mean", *sys.argv[1:])
    tokens = torch.zeros(1, 1000, dtype=torch.long, device=next(run.model.parameters()).device)
    _, state = run.model(tokens)
    print(f"\nthe state after 1,000 tokens has {seqzoo.nbytes(state):,} bytes")


if __name__ == "__main__":
    try:
        main()
    except seqzoo.UserError as error:  # a wrong request: one line says what to change
        sys.exit(str(error))
