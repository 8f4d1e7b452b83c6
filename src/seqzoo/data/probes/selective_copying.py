"""Selective copying: write the letters of a long stream of blanks, in their order.

The letters stand at random places, so a filter that is the same at every step cannot pick them. Gu
and Dao 2023 (arXiv 2312.00752, section 4.1.1, after Jing et al. 2019, arXiv 1706.02761).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Alphabet, Count
from seqzoo.data.probes.probe import (
    LETTERS,
    Examples,
    Probe,
    asked_last,
    at_lengths,
    check_length,
    distinct,
)
from seqzoo.data.tokenizers import Tokenizer


def selective_copying(
    random: np.random.Generator, rows: int, *, length: int, n_data: int, letters: int
) -> Examples:
    """`length` blanks, of which `n_data` are replaced by letters; then as many question marks, at
    each of which the next letter is asked for."""
    data = random.integers(letters, size=(rows, n_data))
    stream = np.full((rows, length), letters)
    np.put_along_axis(stream, np.sort(distinct(random, rows, n_data, length), 1), data, 1)
    tokens = np.concatenate((stream, np.full((rows, n_data), letters + 1)), 1)
    return Examples(tokens, asked_last(tokens, data))


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    letters: Alphabet,
    n_data: Count,
    length: Count,
    test_lengths: list[Count],
) -> Probe:
    """The examples of the task `selective_copying`.

    Raises:
        UserError: streams without room for the letters.
    """
    train, test = [{"length": length}], at_lengths(test_lengths)
    check_length([*train, *test], "length", n_data, f"task.n_data={n_data} letters need room")
    return Probe(
        name="selective_copying",
        note=f"{n_data} of {letters} letters among {length} places, to be copied",
        symbols=(*LETTERS[:letters], "_", "?"),
        make=partial(selective_copying, n_data=n_data, letters=letters),
        train=train,
        test=test,
    )
