"""Needle in a haystack: find the value of a key in a long stream.

A few pairs of a key and a value stand anywhere in a stream of random letters; at the end one key is
asked for. The plain form of passkey retrieval (Mohtashami and Jaggi 2023, arXiv 2305.16300) and of
the retrieval of RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Alphabet, Count
from seqzoo.data.probes.probe import LETTERS, Examples, Probe, asked_last, at_lengths, distinct
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError


def needle(
    random: np.random.Generator, rows: int, *, length: int, pairs: int, letters: int, n_keys: int
) -> Examples:
    """A stream of letters in which `pairs` keys stand, each with its value behind it; then a
    question mark and one of these keys, whose value is asked for. `length` tokens in all."""
    tokens = random.integers(letters, size=(rows, length))
    keys = letters + distinct(random, rows, pairs, n_keys)
    values = letters + n_keys + random.integers(n_keys, size=(rows, pairs))
    places = np.sort(distinct(random, rows, pairs, length - 2 - pairs), 1) + np.arange(pairs)
    np.put_along_axis(tokens, places, keys, 1)
    np.put_along_axis(tokens, places + 1, values, 1)
    asked = random.integers(pairs, size=(rows, 1))
    tokens[:, -2] = letters + 2 * n_keys
    tokens[:, -1:] = np.take_along_axis(keys, asked, 1)
    return Examples(tokens, asked_last(tokens, np.take_along_axis(values, asked, 1)))


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    letters: Alphabet,
    n_keys: Count,
    length: Count,
    pairs: Count,
    test_lengths: list[Count],
    test_pairs: list[Count],
) -> Probe:
    """The examples of the task `needle`.

    Raises:
        UserError: more pairs than there are keys, or than a stream has room for.
    """
    train = {"length": length, "pairs": pairs}
    test = at_lengths(test_lengths, pairs=pairs) + [{**train, "pairs": n} for n in test_pairs]
    for point in (train, *test):
        room = min(n_keys, point["length"] // 2 - 1)
        if point["pairs"] > room:
            raise UserError(
                f"{point['pairs']} pairs in {point['length']} tokens with {n_keys} keys: there is "
                f"room for {room}: change task.pairs and task.length, or task.test_pairs and "
                "task.test_lengths, or give a larger task.n_keys"
            )
    named = (f"{kind}{i}" for kind in "kv" for i in range(n_keys))
    return Probe(
        name="needle",
        note=f"{pairs} pairs among {length} tokens, one of them asked for",
        symbols=(*LETTERS[:letters], *named, "?"),
        make=partial(needle, letters=letters, n_keys=n_keys),
        train=[train],
        test=test,
    )
