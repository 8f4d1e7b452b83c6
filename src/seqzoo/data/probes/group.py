"""The word problem of a group: the product of all elements so far.

Z60 commutes, S3 and S4 are solvable, A5 and S5 are not: their word problem is complete for NC1,
which no Transformer and no linear recurrence with a diagonal transition solves at a fixed depth,
unless TC0 = NC1. Merrill et al. 2024 (arXiv 2404.08819); Siems et al. 2025 (arXiv 2502.10297) test
longer words.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache, partial
from typing import Literal

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.probes.probe import IGNORE, Examples, Probe, at_lengths, lengths
from seqzoo.data.tokenizers import Tokenizer

Group = Literal["Z60", "S3", "S4", "A5", "S5"]


@cache
def elements(group: str) -> list[tuple[int, ...]]:
    """The elements in order, the neutral one first: permutations of 0..n-1, each with what n places
    are mapped to, and of Z60 the numbers."""
    kind, n = group[0], int(group[1:])
    if kind == "Z":
        return [(number,) for number in range(n)]
    every = itertools.permutations(range(n))
    return [one for one in every if kind == "S" or _is_even(one)]


def _is_even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


@cache
def products(group: str) -> np.ndarray:
    """The number (n, n) of the product of any two elements: of permutations the one that does the
    second, then the first."""
    table = np.array(elements(group))  # (n, places)
    n = len(table)
    if group[0] == "Z":
        return np.add.outer(np.arange(n), np.arange(n)) % n
    digits = table.shape[1] ** np.arange(table.shape[1])[::-1]
    numbers: np.ndarray = np.searchsorted(table @ digits, table[:, table] @ digits)
    return numbers


def symbols(group: str) -> list[str]:
    """How elements are written: a number, or what 1, 2, ... are mapped to, such as `213`."""
    shift = 0 if group[0] == "Z" else 1
    return ["".join(str(place + shift) for place in one) for one in elements(group)]


def group_word(
    random: np.random.Generator, rows: int, *, length: int, group: str, ask: str
) -> Examples:
    """Random elements. After each one, or after the last, the product from the first one on."""
    table = products(group)
    word = random.integers(len(table), size=(rows, length))
    values = np.empty_like(word)
    values[:, 0] = word[:, 0]
    for t in range(1, length):
        values[:, t] = table[values[:, t - 1], word[:, t]]
    if ask == "last":
        values[:, :-1] = IGNORE
    return Examples(word, values)


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    group: Group,
    lengths_from: Count,
    lengths_to: Count,
    test_lengths: list[Count],
    ask: Literal["each", "last"],
) -> Probe:
    """The examples of the task `group`.

    Raises:
        UserError: no length is left.
    """
    return Probe(
        name="group",
        note=f"words of {lengths_from} to {lengths_to} elements of {group}",
        symbols=symbols(group),
        make=partial(group_word, group=group, ask=ask),
        train=lengths(lengths_from, lengths_to),
        test=at_lengths(test_lengths),
        seen=lengths_to if ask == "each" else 0,
        chance=1 / len(elements(group)),
    )
