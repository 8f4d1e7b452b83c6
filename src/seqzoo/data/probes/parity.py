"""Parity: is the number of ones even or odd?

A state of one bit that every token can turn. Grazzi et al. 2024 (arXiv 2411.12537) train on short
strings and test on longer ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.probes.probe import IGNORE, Examples, Probe, at_lengths, lengths
from seqzoo.data.tokenizers import Tokenizer


def parity(random: np.random.Generator, rows: int, *, length: int, ask: str) -> Examples:
    """Random bits. After the last bit, or after each one, the sum of all bits so far modulo 2."""
    bits = random.integers(2, size=(rows, length))
    sums = bits.cumsum(1) % 2
    if ask == "last":
        sums[:, :-1] = IGNORE
    return Examples(bits, sums)


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    lengths_from: Count,
    lengths_to: Count,
    test_lengths: list[Count],
    ask: Literal["last", "each"],
) -> Probe:
    """The examples of the task `parity`.

    Raises:
        UserError: no length is left.
    """
    return Probe(
        name="parity",
        note=f"{lengths_from} to {lengths_to} random bits, asked for the parity",
        symbols="01",
        make=partial(parity, ask=ask),
        train=lengths(lengths_from, lengths_to),
        test=at_lengths(test_lengths),
        seen=lengths_to if ask == "each" else 0,
        chance=1 / 2,
    )
