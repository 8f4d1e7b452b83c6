"""Induction heads: what followed the mark, when it stood here before?

Random letters with one mark among them, and the mark once more at the end. Gu and Dao 2023 (arXiv
2312.00752, section 4.1.2), after Olsson et al. 2022 (arXiv 2209.11895).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Alphabet, Count
from seqzoo.data.probes.probe import LETTERS, Examples, Probe, asked_last, at_lengths, check_length
from seqzoo.data.tokenizers import Tokenizer


def induction(random: np.random.Generator, rows: int, *, length: int, letters: int) -> Examples:
    """Letters with a mark at a random place and at the end; after that the letter behind the first
    mark is asked for."""
    tokens = random.integers(letters, size=(rows, length))
    place = random.integers(length - 2, size=(rows, 1))
    np.put_along_axis(tokens, place, letters, 1)
    tokens[:, -1] = letters
    return Examples(tokens, asked_last(tokens, np.take_along_axis(tokens, place + 1, 1)))


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    letters: Alphabet,
    length: Count,
    test_lengths: list[Count],
) -> Probe:
    """The examples of the task `induction`.

    Raises:
        UserError: lengths without room for a letter between two marks.
    """
    train, test = [{"length": length}], at_lengths(test_lengths)
    check_length([*train, *test], "length", 3, "a mark, a letter and the mark again need room")
    return Probe(
        name="induction",
        note=f"{length} tokens of {letters} letters and a mark",
        symbols=(*LETTERS[:letters], "!"),
        make=partial(induction, letters=letters),
        train=train,
        test=test,
    )
