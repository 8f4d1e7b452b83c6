"""What the task `echo` reads: words of random letters."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.tokenizers import Tokenizer


class Words(NamedTuple):
    tokenizer: Tokenizer
    train: np.ndarray  # (N, n_letters)
    val: np.ndarray
    sha256: str


@checked()
def load(*, n_words: Count, n_letters: Count, existing: Any = None, whole: bool = False) -> Words:
    tokenizer = Tokenizer.train("char", ["abcdefgh|"])
    letters = np.random.default_rng(0).integers(0, 8, (n_words, n_letters))
    sha256 = hashlib.sha256(letters.tobytes()).hexdigest()
    return Words(tokenizer, letters[:-20], letters[-20:], sha256)
