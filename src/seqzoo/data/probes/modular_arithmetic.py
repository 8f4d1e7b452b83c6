"""Modular arithmetic without brackets: `3 + 2 * 4 - 1 =`, modulo 5.

Multiplication goes before addition and subtraction, so a state machine needs the sum so far and the
product that is being made. Of Delétang et al. 2022 (arXiv 2207.02098); the lengths are those of
Grazzi et al. 2024 (arXiv 2411.12537).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.probes.probe import Examples, Probe, asked_last, at_lengths, check_length, lengths
from seqzoo.data.tokenizers import Tokenizer

OPERATORS = "+-*="
PLUS, MINUS, TIMES, EQUALS = range(4)
Modulus = Annotated[int, Field(ge=2, le=1000)]


def modular_arithmetic(
    random: np.random.Generator, rows: int, *, length: int, modulus: int
) -> Examples:
    """Numbers with operators between them, and `=`; the value is asked for after that.

    An expression has an even number of tokens: of an odd `length` the last one is left out.
    """
    n = length // 2
    numbers = random.integers(modulus, size=(rows, n))
    operators = random.integers(EQUALS, size=(rows, n))
    operators[:, -1] = EQUALS
    total, term = np.zeros(rows, np.int64), numbers[:, 0]  # the sum, and the term being made
    for number, operator in zip(numbers.T[1:], operators.T, strict=False):
        times, sign = operator == TIMES, np.where(operator == MINUS, -1, 1)
        total = np.where(times, total, total + term)
        term = np.where(times, term * number, sign * number) % modulus
    values = (total + term) % modulus
    tokens = np.stack((numbers, modulus + operators), 2).reshape(rows, 2 * n)
    return Examples(tokens, asked_last(tokens, values[:, None]))


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    lengths_from: Count,
    lengths_to: Count,
    test_lengths: list[Count],
    modulus: Modulus,
) -> Probe:
    """The examples of the task `modular_arithmetic`.

    Raises:
        UserError: lengths without room for a number and `=`.
    """
    train, test = lengths(lengths_from, lengths_to), at_lengths(test_lengths)
    check_length([*train, *test], "lengths_from", 2, "a number and = are the shortest expression")
    return Probe(
        name="modular_arithmetic",
        note=f"expressions of {lengths_from} to {lengths_to} tokens, modulo {modulus}",
        symbols=(*map(str, range(modulus)), *OPERATORS),
        make=partial(modular_arithmetic, modulus=modulus),
        train=train,
        test=test,
        chance=1 / modulus,
    )
