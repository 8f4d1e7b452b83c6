"""Static and contextual embeddings: how far the vectors of one word are apart in its contexts.

An embedding gives a word one vector; every layer adds what the context tells. The measures are
those of Ethayarajh 2019 (arXiv 1909.00512, section 3.3), as distances: the distance between the
occurrences of a word, against the distance between tokens drawn at random, which is small where all
vectors of a layer point into one direction (anisotropy).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.data.tokenizers import Tokenizer
from seqzoo.models.language_model import LanguageModel, PositionEmbedding
from seqzoo.report.text import visible

MAX_WORDS = 64  # the most frequent ones are measured
ROWS_AT_ONCE = 32
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Contexts:
    """Distances 1 - cos at each stage of a model: W words, S stages.

    Attributes:
        stages: embedding, positions where they are added, every layer, and the head's input.
        words: the most frequent ones, each at least twice in the texts; and how often it is there.
        to_mean: (W, S) of a word's vectors to their mean, mean over its occurrences.
        between: (W, S) between two occurrences of a word, mean over all pairs.
        random: (S,) between two tokens of the texts, mean over all pairs.
    """

    stages: list[str]
    words: list[str]
    counts: list[int]
    to_mean: Array
    between: Array
    random: Array


def contexts(model: LanguageModel, tokenizer: Tokenizer, tokens: Tensor) -> Contexts:
    """Measure the most frequent words of texts (B, T), each read from the empty state."""
    names, ends = word_ends(tokenizer, tokens.cpu().numpy())
    counts = np.bincount(ends[ends >= 0], minlength=len(names))
    order = np.argsort(-counts, kind="stable")[:MAX_WORDS]
    order = order[counts[order] >= 2]
    chosen = np.full(len(names) + 1, -1)  # the last item is that of -1
    chosen[order] = np.arange(len(order))
    words = torch.from_numpy(chosen[ends]).to(tokens.device)
    stages, to_mean, between, random = distances(model, tokens, words, len(order))
    found = [array.cpu().numpy() for array in (to_mean, between, random)]
    return Contexts(stages, [names[i] for i in order], counts[order].tolist(), *found)


def word_ends(tokenizer: Tokenizer, tokens: Array) -> tuple[list[str], Array]:
    """The words of texts (B, T), and where they end.

    A token is a word, but where tokens are characters or bytes a word is a run of letters and
    digits; one that a border of its text may have cut is left out.

    Returns:
        The words, and (B, T): the index of the word of which a token is the last, or -1.
    """
    pieces = [tokenizer.decode([index]) for index in range(tokenizer.vocab_size)]
    if tokenizer.kind not in ("char", "byte"):
        names = [visible(piece) or f"<{index}>" for index, piece in enumerate(pieces)]
        return names, tokens.astype(np.int64)
    letters = [piece if len(piece) == 1 else " " for piece in pieces]
    found: dict[str, int] = {}
    ends = np.full(tokens.shape, -1)
    for row, ids in enumerate(tokens.tolist()):
        for match in re.finditer(r"(?<!\A)\b\w+\b(?!\Z)", "".join(letters[i] for i in ids)):
            ends[row, match.end() - 1] = found.setdefault(match[0], len(found))
    return list(found), ends


def stage_modules(model: LanguageModel) -> dict[str, nn.Module]:
    """The modules whose outputs are a token's vectors, in order."""
    modules: dict[str, nn.Module] = {"embedding": model.embedding}
    layers = list(model.layers)
    if isinstance(layers[0], PositionEmbedding):
        modules["positions"] = layers.pop(0)
    modules |= {f"layer {i}": layer for i, layer in enumerate(layers)}
    return {**modules, "head input": model.norm_out}


@contextmanager
def stage_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the outputs (B, T, D) of some modules inside, in the order in which they run."""
    outputs: list[Tensor] = []

    def keep(module: object, inputs: object, output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def distances(
    model: LanguageModel, tokens: Tensor, words: Tensor, n_words: int
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """The stages, and `to_mean`, `between` and `random` of `Contexts`.

    No vector is kept: sums of vectors and of unit vectors are enough, since the sum of u_i . u_j
    over all pairs i, j is the squared length of the sum of u_i.

    Args:
        tokens: (B, T).
        words: (B, T) index below `n_words` of a word that ends here, or -1.
    """
    modules = stage_modules(model)
    shape = (len(modules), n_words, model.embedding.embedding_dim)
    sums = torch.zeros(shape, dtype=torch.float64, device=tokens.device)  # of a word's vectors
    units = torch.zeros_like(sums)  # of a word's unit vectors
    whole = torch.zeros_like(sums[:, 0])  # of the unit vectors of all tokens
    parts = (torch.split(each, ROWS_AT_ONCE) for each in (tokens, words))
    for rows, ends in zip(*parts, strict=True):
        with stage_outputs(list(modules.values())) as outputs:
            model(rows)
        at, word = ends.flatten() >= 0, ends[ends >= 0]
        for stage, output in enumerate(outputs):
            vectors = output.flatten(0, 1).double()
            unit = F.normalize(vectors, dim=-1)
            sums[stage].index_add_(0, word, vectors[at])
            units[stage].index_add_(0, word, unit[at])
            whole[stage] += unit.sum(0)
    counts = torch.bincount(words[words >= 0], minlength=n_words)  # (W,)
    towards = (F.normalize(sums, dim=-1) * units).sum(-1) / counts  # (S, W)
    to_mean = (1 - towards).clamp(min=0).T
    between, random = _mean_distance(units, counts).T, _mean_distance(whole, tokens.numel())
    return list(modules), to_mean, between, random


def _mean_distance(total: Tensor, count: Tensor | int) -> Tensor:
    """The mean of 1 - cos over all pairs of `count` unit vectors with the sum `total` (..., D)."""
    cosine = (total.square().sum(-1) - count) / (count * (count - 1))
    return (1 - cosine).clamp(min=0)
