"""Copying: read a string and a bar, then write the string again.

A state of bounded size holds strings up to some length; attention looks each letter up. Jelassi et
al. 2024 (arXiv 2402.01032).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Alphabet, Count
from seqzoo.data.probes.probe import LETTERS, Examples, Probe, asked_last, at_lengths, lengths
from seqzoo.data.tokenizers import Tokenizer


def copying(random: np.random.Generator, rows: int, *, length: int, letters: int) -> Examples:
    """`$abca|abca`: asked for from the bar on is the next letter, and at the end a full stop."""
    string = random.integers(letters, size=(rows, length))
    begin, bar, stop = (np.full((rows, 1), letters + i) for i in range(3))
    tokens = np.concatenate((begin, string, bar, string), 1)
    return Examples(tokens, asked_last(tokens, np.concatenate((string, stop), 1)))


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    letters: Alphabet,
    lengths_from: Count,
    lengths_to: Count,
    test_lengths: list[Count],
) -> Probe:
    """The examples of the task `copying`.

    Raises:
        UserError: no length is left.
    """
    return Probe(
        name="copying",
        note=f"strings of {lengths_from} to {lengths_to} of {letters} letters, to be copied",
        symbols=(*LETTERS[:letters], "$", "|", "."),
        make=partial(copying, letters=letters),
        train=lengths(lengths_from, lengths_to),
        test=at_lengths(test_lengths),
    )
