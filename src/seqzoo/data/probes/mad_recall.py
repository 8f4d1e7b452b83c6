"""Recall as mechanistic architecture design (MAD) asks for it: pairs of a key and its value, whose
value is asked for wherever the key stood before. Poli et al. 2024 (arXiv 2403.17844).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from seqzoo.data.probes.probe import IGNORE, Examples

MOTIF = 3  # tokens of the longest key and of the longest value of fuzzy recall
NOISY = 0.2  # share of the pairs of noisy recall that are noise
SPACE = -1  # in place of a token where there is none, and of the key of a pair that is noise


def recall(
    random: np.random.Generator, rows: int, *, length: int, vocab_size: int, noise: int = 0
) -> Examples:
    """Keys, each with its value behind it; the last key always stood before.

    Args:
        noise: tokens of noise, the last ones: a share of `NOISY` of the pairs are two of these.
    """
    n_keys, n_pairs = (vocab_size - noise) // 2, length // 2
    keys = random.integers(n_keys, size=(rows, n_pairs))
    if noise:
        keys[random.random(keys.shape) < NOISY] = SPACE
        kept = random.integers(n_pairs - 1, size=(rows, 1))  # this pair at least is none
        np.put_along_axis(keys, kept, random.integers(n_keys, size=(rows, 1)), 1)
    there = (keys[:, :-1, None] == np.arange(n_keys)).any(1)  # (rows, n_keys)
    keys[:, -1] = (there * random.random(there.shape)).argmax(1)
    first, again = _first(keys)
    drawn = random.integers(n_keys, vocab_size - noise, size=keys.shape)
    values = np.take_along_axis(drawn, first, 1)
    pairs = np.stack((keys, values), 2)
    if noise:
        made = random.integers(vocab_size - noise, vocab_size, size=pairs.shape)
        pairs = np.where(keys[:, :, None] == SPACE, made, pairs)
    asked = np.where(again & (keys != SPACE), values, IGNORE)
    targets = np.stack((asked, np.full_like(asked, IGNORE)), 2)
    return Examples(pairs.reshape(rows, -1)[:, :-1], targets.reshape(rows, -1)[:, :-1])


def fuzzy_recall(
    random: np.random.Generator,
    rows: int,
    *,
    length: int,
    vocab_size: int,
    training: bool = False,
) -> Examples:
    """As `recall`, with keys and values of one to three tokens; the keys are of three, except in
    training. Rows are filled up with blanks on the left."""
    blank = vocab_size - 1
    keys = _motifs(0, blank // 2, 1 if training else MOTIF)
    values = _motifs(blank // 2, blank, 1)
    drawn, drawn_values = (one.draw(random, (rows, length // 2)) for one in (keys, values))
    first, _ = _first(drawn)
    drawn_values = np.take_along_axis(drawn_values, first, 1)
    ends = (keys.sizes[drawn] + values.sizes[drawn_values]).cumsum(1)
    kept = (ends <= length + 1 - 2 * MOTIF).sum(1)  # pairs before the last one
    last = (random.random(rows) * kept).astype(np.int64)  # which of them it is
    number = np.arange(kept.max() + 1)
    used = (number < kept[:, None]) | (number == number[-1])
    number = np.where(number < kept[:, None], number, last[:, None])
    key, value = (np.take_along_axis(each, number, 1) for each in (drawn, drawn_values))
    _, again = _first(np.where(used, key, SPACE))
    tokens = np.concatenate((keys.tokens[key], values.tokens[value]), 2)  # (rows, pairs, 6)
    answers = np.where(again[:, :, None], tokens, IGNORE)
    answers[:, :, :MOTIF] = IGNORE
    there = (tokens != SPACE) & used[:, :, None]
    read = _to_the_right(tokens, there, length + 1, blank)
    asked = _to_the_right(answers, there, length + 1, IGNORE)
    return Examples(read[:, :-1], asked[:, 1:])


@dataclass(frozen=True)
class _Motifs:
    """Sequences of different tokens, the shorter ones first.

    Attributes:
        tokens: (N, MOTIF), with SPACE behind the shorter ones.
        sizes: (N,) tokens of each.
        bounds: (sizes, 2), the first motif of each size and the one behind its last.
    """

    tokens: np.ndarray
    sizes: np.ndarray
    bounds: np.ndarray

    def draw(self, random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Numbers of motifs: each size is as likely as another, then each motif of it."""
        bounds = self.bounds[random.integers(len(self.bounds), size=shape)]
        return random.integers(bounds[..., 0], bounds[..., 1])


@cache
def _motifs(low: int, high: int, shortest: int) -> _Motifs:
    """All of the tokens from `low` to below `high`, of `shortest` to MOTIF tokens."""
    sizes = range(shortest, MOTIF + 1)
    found = [one for size in sizes for one in permutations(range(low, high), size)]
    tokens = np.array([(*one, *[SPACE] * (MOTIF - len(one))) for one in found])
    each = np.array([len(one) for one in found])
    bounds = np.stack([np.searchsorted(each, sizes, side) for side in ("left", "right")], 1)
    return _Motifs(tokens, each, bounds)


def _first(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each key (B, N) stands first in its row, and whether that is further left."""
    first = (keys[:, :, None] == keys[:, None, :]).argmax(2)
    return first, first < np.arange(keys.shape[1])


def _to_the_right(pieces: np.ndarray, there: np.ndarray, width: int, fill: int) -> np.ndarray:
    """The tokens (B, N, n) that are there, close together at the right of their row: (B, width)."""
    rows = len(pieces)
    flat, there = pieces.reshape(rows, -1), there.reshape(rows, -1)
    places = width - there[:, ::-1].cumsum(1)[:, ::-1]
    out = np.full((rows, width), fill)
    out[np.nonzero(there)[0], places[there]] = flat[there]
    return out
