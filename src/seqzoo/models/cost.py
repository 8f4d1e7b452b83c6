"""What a configured model costs, measured on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from seqzoo import ops
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build
from seqzoo.state import nbytes

LENGTHS = (1, 64, 256, 1024, 4096)


def describe(
    keys: Mapping[str, Any], vocab_size: int = 65, source_vocab_size: int | None = None
) -> str:
    """Parameters, FLOPs a token and state bytes at several lengths, as text.

    Args:
        keys: the model's configuration.
        vocab_size: number of tokens V.
        source_vocab_size: as `build` takes it.
    """
    model = build(vocab_size=vocab_size, source_vocab_size=source_vocab_size, **keys).eval()
    parts = {"embedding and head": 0, "layers": 0}
    for name, parameter in model.named_parameters():
        parts[
            "layers" if name.startswith(("layers", "encoder.stacks")) else "embedding and head"
        ] += parameter.numel()
    lengths = [n for n in LENGTHS if model.max_len is None or n <= model.max_len]
    lines = [
        f"{keys['name']}: " + ", ".join(f"{k} {v}" for k, v in keys.items() if k != "name"),
        f"parameters          {model.n_parameters():>14,}   (vocabulary {vocab_size})",
        *(f"  {part:<18}{count:>14,}" for part, count in parts.items()),
        f"FLOPs a token       {flops_per_token(model, 64):>14,}   (read in parallel, T = 64)",
        *(["behind a source of as many tokens:"] if model.reads_source else []),
        "",
        f"{'context T':>10} {'state bytes':>14} {'FLOPs of token T':>18}",
    ]
    for length in lengths:
        size, flops = step_at(model, length)
        lines.append(f"{length:>10,} {size:>14,} {flops:>18,}")
    return "\n".join(lines)


def flops_of_token(model: LanguageModel) -> tuple[int, int]:
    """FLOPs of reading the first token, and how many more each later one takes than the one
    before: what the definition needs, read token by token."""
    (_, first), (_, second) = step_at(model, 1), step_at(model, 2)
    return first, second - first


@torch.no_grad()
def flops_of_training(model: LanguageModel, length: int) -> float:
    """FLOPs a token of training on sequences of that length: of what the definition needs, token by
    token, a forward pass and a backward one, which is twice as much. Behind an encoder: the mean
    over a source and a target of half the length each."""
    if not model.reads_source:
        first, growth = flops_of_token(model)
        return 3 * (first + growth * (length - 1) / 2)
    half = max(1, length // 2)
    tokens = torch.zeros(1, half, dtype=torch.long)
    encoding, state = _counted(lambda: model.encode(tokens))  # type: ignore[attr-defined]
    first, (_, state) = _counted(lambda: model(tokens[:, :1], state))
    second, _ = _counted(lambda: model(tokens[:, :1], state))
    target = half * first + (second - first) * half * (half - 1) / 2
    return 3 * (encoding + target) / (2 * half)


@torch.no_grad()
def flops_per_token(model: LanguageModel, length: int) -> int:
    """FLOPs of reading `length` tokens from the empty state, divided by them: two a multiply-add of
    every matrix product of the definition. What is done element by element is not counted. With an
    encoder: of a source and a target of that length each."""
    tokens = torch.zeros(1, length, dtype=torch.long)
    source = (tokens,) if model.reads_source else ()
    flops, _ = _counted(lambda: model(tokens, None, *source))
    return flops // (length * (1 + len(source)))


@torch.no_grad()
def step_at(model: LanguageModel, length: int) -> tuple[int, int]:
    """Bytes of the state after `length` tokens, and FLOPs of reading the last of them; with an
    encoder, behind a source of as many."""
    tokens = torch.zeros(1, length, dtype=torch.long)
    state = model.begin(tokens, 0)[1] if model.reads_source else None
    state = model(tokens[:, 1:], state)[1] if length > 1 else state
    flops, (_, state) = _counted(lambda: model(tokens[:, :1], state))
    return nbytes(state), flops


def _counted(call: Callable[[], Any]) -> tuple[int, Any]:
    """The FLOPs of a call by the definitions, and what it returned."""
    with ops.backend("naive"), FlopCounterMode(display=False) as counter:
        out = call()
    return counter.get_total_flops(), out
