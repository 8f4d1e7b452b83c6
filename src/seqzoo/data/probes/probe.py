"""What a probe is: a function that makes examples, and the sizes to train and to measure with.

Examples are made on the fly, of random numbers that depend on the seed and on the number of the
batch alone. B examples, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from seqzoo.errors import UserError

IGNORE = -100  # a target where nothing is asked, as in `seqzoo.tasks.next_token`
STREAMS = {"train": 1, "val": 2, "test": 3}  # the first number of a seed, so that none overlap
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Sizes = Mapping[str, int]  # of an example: {"length": 64}, or {"length": 64, "pairs": 4}


class Examples(NamedTuple):
    """Some examples; shorter ones are filled up on the right with token 0, and nothing is asked."""

    inputs: np.ndarray  # (B, T) tokens
    targets: np.ndarray  # (B, T): what is asked for after each of them; IGNORE where nothing is
    n_padding: int = 0  # tokens that fill up


@dataclass(frozen=True)
class Probe:
    """A probe with its keys filled in.

    Attributes:
        name: of the task.
        note: the data, in a line.
        symbols: how each token is written.
        make: `make(random, rows, **sizes)` gives that many examples, drawn with `random`.
        train: sizes to train with, of which each example draws one; the last are those of `val`.
        test: the sizes of `test`, most of them larger.
        chance: the accuracy of a guess, where scores are also given relative to it.
        make_training: in place of `make` for training.
        seen: of a longer example, only what is asked after so many tokens is measured; before it
            stands what a trained example has.
    """

    name: str
    note: str
    symbols: Sequence[str]
    make: Callable[..., Examples]
    train: Sequence[Sizes]
    test: Sequence[Sizes]
    chance: float | None = None
    make_training: Callable[..., Examples] | None = None
    seen: int = 0

    def training(self, seed: int, number: int, rows: int) -> Examples:
        """The training batch of a number: a pure function of it and of the seed."""
        random = np.random.default_rng((STREAMS["train"], seed, number))
        make, n = self.make_training or self.make, len(self.train)
        counts = random.multinomial(rows, [1 / n] * n)
        drawn = ((int(count), sizes) for count, sizes in zip(counts, self.train, strict=True))
        return _padded([make(random, count, **sizes) for count, sizes in drawn if count])

    def held_out(self, split: str, sizes: Sizes, number: int, rows: int) -> Examples:
        """The evaluation batch of a number, the same for every run."""
        random = np.random.default_rng((STREAMS[split], *sizes.values(), number))
        made = self.make(random, rows, **sizes)
        if self.seen < made.targets.shape[1]:
            made.targets[:, : self.seen] = IGNORE
        return made

    def points(self, split: str) -> Sequence[Sizes]:
        """The sizes that are measured on `val` or `test`."""
        return self.train[-1:] if split == "val" else self.test

    def n_tokens(self, sizes: Sizes) -> int:
        """The tokens of an example of these sizes."""
        (example,) = self.make(np.random.default_rng(0), 1, **sizes).inputs
        return len(example)

    @property
    def longest(self) -> int:
        """The tokens of the longest example that is read."""
        return max(map(self.n_tokens, (self.train[-1], *self.test)))

    @cached_property
    def sha256(self) -> str:
        """Of some training examples and of what `val_sha256` is of: it changes with whatever
        changes the examples."""
        return self._digest(*(self.training(0, number, 2) for number in range(4)))

    @cached_property
    def val_sha256(self) -> str:
        """Of the symbols and of two examples of each size that is measured."""
        return self._digest()

    def _digest(self, *more: Examples) -> str:
        digest = hashlib.sha256("\n".join(self.symbols).encode())
        points = ((split, sizes) for split in ("val", "test") for sizes in self.points(split))
        for examples in (*more, *(self.held_out(*point, 0, 2) for point in points)):
            digest.update(examples.inputs.tobytes() + examples.targets.tobytes())
        return digest.hexdigest()


def _padded(parts: Sequence[Examples]) -> Examples:
    """Examples of several lengths, the shortest first, as one batch."""
    shape = sum(len(part.inputs) for part in parts), parts[-1].inputs.shape[1]
    inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE)
    begin = 0
    for part in parts:
        rows, length = part.inputs.shape
        inputs[begin : begin + rows, :length] = part.inputs
        targets[begin : begin + rows, :length] = part.targets
        begin += rows
    return Examples(inputs, targets, inputs.size - sum(part.inputs.size for part in parts))


# ---- what several probes use


def lengths(lengths_from: int, lengths_to: int) -> list[Sizes]:
    """The sizes of each length from the one to the other.

    Raises:
        UserError: there is none.
    """
    if lengths_from > lengths_to:
        raise UserError(
            f"task.lengths_from={lengths_from} is more than task.lengths_to={lengths_to}: give "
            f"task.lengths_from={lengths_to}, or a longer task.lengths_to"
        )
    return [{"length": length} for length in range(lengths_from, lengths_to + 1)]


def at_lengths(test_lengths: Iterable[int], **sizes: int) -> list[Sizes]:
    """Sizes to test with: each of the lengths, with other sizes as they are."""
    return [{"length": length, **sizes} for length in test_lengths]


def check_length(sizes: Iterable[Sizes], key: str, least: int, why: str) -> None:
    """Refuse examples that are too short.

    Args:
        key: of the training length.
        why: what needs `least`, in words.

    Raises:
        UserError: the length, and the least one.
    """
    for number, one in enumerate(sizes):
        if one["length"] < least:
            where = key if number == 0 else "test_lengths"
            raise UserError(f"task.{where}: {one['length']}: {why}: give {least} or more")


def distinct(
    random: np.random.Generator, rows: int, count: int, n: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """`count` different numbers below n in each row, in the order in which they were drawn.

    One after the other, each in proportion to its weight among those that are left (n,); without
    weights all alike. As exponential random numbers divided by the weights: the smallest are drawn.

    Returns:
        (rows, count).
    """
    times = random.standard_exponential((rows, n), dtype=np.float32)
    if weights is not None:
        times /= weights
    chosen = times.argpartition(count - 1, axis=1)[:, :count]
    order = np.take_along_axis(times, chosen, 1).argsort(1)
    return np.take_along_axis(chosen, order, 1)


def asked_last(tokens: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Targets (B, T) of inputs (B, T) whose last answers (B, n) alone are asked for."""
    targets = np.full_like(tokens, IGNORE)
    targets[:, tokens.shape[1] - answers.shape[1] :] = answers
    return targets
