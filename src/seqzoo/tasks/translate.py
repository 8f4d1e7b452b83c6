"""Translating encoded sentences with any model: greedily, or by beam search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from seqzoo.data.tokenizers import Tokenizer
from seqzoo.decoding.beam import Hypothesis, beam_search
from seqzoo.decoding.sampling import generate
from seqzoo.models.language_model import LanguageModel, evaluating
from seqzoo.state import State

T = TypeVar("T")
ROWS = 256  # sentences, or beams of them, decoded at once


class Translator(NamedTuple):
    """A model and the tokenizers of both sides."""

    model: LanguageModel
    tokenizer: Tokenizer  # of the target
    source_tokenizer: Tokenizer

    def translate(
        self, sources: Sequence[np.ndarray], *, beams: int = 1, length_penalty: float = 1.0
    ) -> list[str]:
        """Translations in the order of the encoded sources: greedy, or the best of a beam
        search."""
        if beams > 1:
            found = self.n_best(sources, beams=beams, length_penalty=length_penalty)
            return [self.tokenizer.decode(best[0].tokens) for best in found]
        end = self.tokenizer.id("</s>")

        def greedy(prompt: Tensor, state: State, limit: int) -> list[list[int]]:
            steps = generate(self.model, prompt, state, max_tokens=limit, temperature=0, stop=end)
            rows: list[list[int]] = torch.stack(list(steps), 1).tolist()
            return rows

        tokens = self._decode(sources, ROWS, greedy)
        return [self.tokenizer.decode(row or []) for row in tokens]

    def n_best(
        self, sources: Sequence[np.ndarray], *, beams: int, length_penalty: float
    ) -> list[list[Hypothesis]]:
        """The hypotheses of a beam search for each encoded source, best first. The translation of
        an empty source is empty."""

        def search(prompt: Tensor, state: State, limit: int) -> list[list[Hypothesis]]:
            return beam_search(
                self.model,
                prompt,
                state,
                beams=beams,
                max_tokens=limit,
                stop=self.tokenizer.id("</s>"),
                length_penalty=length_penalty,
            )

        found = self._decode(sources, max(1, ROWS // beams), search)
        return [best or [Hypothesis([], 0.0)] for best in found]

    def _decode(
        self,
        sources: Sequence[np.ndarray],
        rows_at_once: int,
        decode: Callable[[Tensor, State, int], list[T]],
    ) -> list[T | None]:
        """Apply ``decode(prompt, state, max_tokens)`` to every source; None for an empty one.

        At most twice the source and 50 tokens are generated. A source with more tokens than the
        model has positions for is cut.
        """
        model = self.model
        out: list[T | None] = [None] * len(sources)
        start, end = self.tokenizer.id("<s>"), self.source_tokenizer.id("</s>")
        for rows, source in _equal_lengths(sources, model.max_source_len, rows_at_once):
            source = model.source_tokens(source, end)
            with torch.inference_mode(), evaluating(model):
                prompt, state = model.start(source.to(model.embedding.weight.device), start)
            length = source.shape[1]
            limit = min(2 * length + 50, model.positions_left(length) - 1)
            for row, result in zip(rows, decode(prompt, state, max(1, int(limit))), strict=True):
                out[row] = result
        return out


def _equal_lengths(
    sources: Sequence[np.ndarray], max_len: int | None, rows_at_once: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Non-empty sources in groups of one length, so that no row is padded: row numbers, and tokens
    (B, S)."""

    def length(row: int) -> int:
        return len(sources[row][:max_len])

    order = sorted((row for row in range(len(sources)) if length(row)), key=length)
    for _, group in groupby(order, length):
        rows = list(group)
        for i in range(0, len(rows), rows_at_once):
            part = rows[i : i + rows_at_once]
            ids = np.stack([sources[row][:max_len] for row in part]).astype(np.int64)
            yield part, torch.from_numpy(ids)
