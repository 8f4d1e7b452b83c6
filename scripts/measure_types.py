"""What weights and keys in fewer bits cost: nats a token of a run's text, read by the step that
`seqzoo generate` prepares, one token after the other.

    python scripts/measure_types.py RUN TEXT [--rows 16] [--length 1500]

Prints a Markdown table with a row for each type of weights and of a cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from seqzoo import load
from seqzoo.decoding.step import TYPES, PreparedStep, Types
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel


@torch.inference_mode()
def nats(model: LanguageModel, tokens: torch.Tensor, types: Types) -> float:
    """The mean over tokens (B, T) but the first two of each row."""
    rows, length = tokens.shape
    _, state = model(tokens[:, :1])
    step = PreparedStep(model, state, rows, length - 2, types)
    total = 0.0
    for t in range(1, length - 1):
        loss = F.cross_entropy(step(tokens[:, t]).double(), tokens[:, t + 1])
        total += float(loss)
    return total / (length - 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", help="a run directory of a language model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1500, help="tokens of a row")
    given = parser.parse_args()
    run = load(given.run)
    ids = run.tokenizer.encode(given.text.read_text(encoding="utf-8")).astype("int64")
    count = given.rows * given.length
    tokens = torch.from_numpy(ids[-count:]).view(given.rows, given.length)
    exact = nats(run.model, tokens, Types())
    print(f"| {given.run} | nats a token | more than float32 |\n|---|--:|--:|")
    print(f"| float32 | {exact:.5f} | |", flush=True)
    for field in Types._fields:
        for kind in list(TYPES)[1:]:
            types = Types(**{field: kind})
            try:
                found = nats(run.model, tokens, types)
            except UserError as error:
                print(f"| {types.narrow()} | {error} | |")
                continue
            print(f"| {types.narrow()} | {found:.5f} | {found - exact:+.5f} |", flush=True)


if __name__ == "__main__":
    main()
