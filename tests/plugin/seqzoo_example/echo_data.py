"""The data of the task `echo`: words of random letters. Loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.tokenizers import Tokenizer

LETTERS, HELD_OUT = "abcdefgh", 20


class Words(NamedTuple):
    tokenizer: Tokenizer
    train: np.ndarray  # (N, n_letters) tokens
    val: np.ndarray
    sha256: str


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    n_words: Count,
    n_letters: Count,
) -> Words:
    tokenizer = existing.get("tokenizer") or Tokenizer.train("char", [LETTERS + "|"])
    random = np.random.default_rng(0)
    chosen = random.integers(0, len(LETTERS), (n_words + HELD_OUT, n_letters))
    words = tokenizer.encode(LETTERS)[chosen]
    sha256 = hashlib.sha256(chosen.tobytes()).hexdigest()
    return Words(tokenizer, words[:-HELD_OUT], words[-HELD_OUT:], sha256)
