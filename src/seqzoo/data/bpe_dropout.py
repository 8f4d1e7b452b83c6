"""BPE-dropout (Provilkov et al. 2020, arXiv 1910.13267): words cut into tokens at random.

Byte-pair encoding joins the letters of a word by a list of merges, the first of the list first.
With dropout every merge that is possible at a step is left out with some probability, so that the
same word is read as different tokens, and its parts are learned too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import numpy as np

from seqzoo.data.tokenizers import Tokenizer

WAYS = 64  # to cut a word: as many are drawn, and each reading takes one of them


class BpeDropout:
    """Sentences under a `bpe` tokenizer, cut into tokens anew at each reading.

    Args:
        tokenizer: whose merges are used.
        sentences: the ids of each, without specials.
        probability: that a possible merge is left out; 0: the tokens are those of `sentences`.
        seed: of the ways to cut a word.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sentences: Sequence[np.ndarray],
        probability: float,
        seed: int,
    ) -> None:
        self.tokenizer, self.sentences = tokenizer, sentences
        self.probability, self.seed = probability, seed
        self._vocabulary = tokenizer.inner.get_vocab()
        merges = json.loads(tokenizer.inner.to_str())["model"]["merges"]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self._words: dict[int, list[str]] = {}
        self._ways: dict[tuple[str, int], list[int]] = {}

    def read(self, row: int, draw: np.random.Generator) -> np.ndarray:
        """The ids of a sentence, cut by what is drawn."""
        if row not in self._words:
            text = self.tokenizer.decode(self.sentences[row])
            cut = self.tokenizer.inner.pre_tokenizer.pre_tokenize_str(text)
            self._words[row] = [word for word, _ in cut]
        words, ids = self._words[row], []
        for word, way in zip(words, draw.integers(WAYS, size=len(words)).tolist(), strict=True):
            if (word, way) not in self._ways:
                self._ways[word, way] = self._cut(word, way)
            ids += self._ways[word, way]
        return np.array(ids, self.tokenizer.dtype)

    def _cut(self, word: str, way: int) -> list[int]:
        """The ids of a word, the same for the same `way`."""
        draw = Random(f"{self.seed} {way} {word}").random
        parts = list(word)
        while True:
            possible = [
                (self._ranks[pair], i)
                for i, pair in enumerate(pairwise(parts))
                if pair in self._ranks and draw() >= self.probability
            ]
            if not possible:
                return [self._vocabulary[part] for part in parts]
            _, i = min(possible)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
