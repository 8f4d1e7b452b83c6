"""Multi-query associative recall: pairs of a key and a value, then each key once more.

How many pairs a state of bounded size can hold tells architectures apart. Arora et al. 2023
(Zoology, arXiv 2312.04927, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Flag, Positive
from seqzoo.data.probes.probe import IGNORE, Examples, Probe, Sizes, at_lengths, distinct
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError

BLANK = 0


def mqar(
    random: np.random.Generator,
    rows: int,
    *,
    length: int,
    pairs: int,
    vocab_size: int,
    power: float,
    random_fill: bool,
) -> Examples:
    """Pairs, then at some of the even places behind them each key again, where its value is asked.

    Token 0 is a blank, the tokens below `vocab_size // 2` are keys, those from there on values.

    Args:
        power: the j-th place is drawn in proportion to j ** (power - 1); 1: all places alike.
        random_fill: what is left are random tokens, else blanks.
    """
    half = vocab_size // 2
    keys = 1 + distinct(random, rows, pairs, half - 1)
    values = half + distinct(random, rows, pairs, vocab_size - half)
    places = (length - 2 * pairs) // 2
    weights = np.arange(1, places + 1, dtype=np.float32) ** np.float32(power - 1)
    asked = 2 * pairs + 2 * distinct(random, rows, pairs, places, weights)
    tokens = np.full((rows, length), BLANK)
    if random_fill:
        tokens = random.integers(vocab_size, size=(rows, length))
    tokens[:, : 2 * pairs] = np.stack((keys, values), 2).reshape(rows, 2 * pairs)
    targets = np.full_like(tokens, IGNORE)
    np.put_along_axis(tokens, asked, keys, 1)
    np.put_along_axis(targets, asked, values, 1)
    return Examples(tokens, targets)


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    vocab_size: Count,
    length: Count,
    pairs: Count,
    test_lengths: list[Count],
    test_pairs: list[Count],
    power: Positive,
    random_fill: Flag,
) -> Probe:
    """The examples of the task `mqar`.

    Raises:
        UserError: more pairs than there is room or are tokens for.
    """
    train = {"length": length, "pairs": pairs}
    test = at_lengths(test_lengths, pairs=pairs) + [{**train, "pairs": n} for n in test_pairs]
    _check([train, *test], vocab_size)
    half = vocab_size // 2
    symbols = ["_", *(f"k{i}" for i in range(1, half)), *(f"v{i}" for i in range(half, vocab_size))]
    return Probe(
        name="mqar",
        note=f"{pairs} pairs in {length} tokens of {vocab_size}",
        symbols=symbols,
        make=partial(mqar, vocab_size=vocab_size, power=power, random_fill=random_fill),
        train=[train],
        test=test,
    )


def _check(points: Iterable[Sizes], vocab_size: int) -> None:
    for point in points:
        length, pairs = point["length"], point["pairs"]
        if 4 * pairs > length:
            raise UserError(
                f"{pairs} pairs take {4 * pairs} tokens, with the keys once more, and a length is "
                f"{length}: change task.pairs and task.length, or task.test_pairs and "
                "task.test_lengths"
            )
        if pairs > vocab_size // 2 - 1:
            raise UserError(
                f"task.vocab_size={vocab_size}: {pairs} pairs need as many keys, which are half of "
                f"the tokens less one: give {2 * pairs + 2} or more"
            )
