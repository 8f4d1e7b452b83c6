"""The six tasks of mechanistic architecture design (MAD): Poli et al. 2024 (arXiv 2403.17844).

Each has the paper's size unless another is given. What differs from the paper and its code: its
compression is read by an autoencoder that sees one output of the model, here the model itself
writes the sequence after the mark, so attention can look back. Its code trains on a fixed set of
examples, here every batch is new unless `task.examples` limits them. In its fuzzy recall the pair
that is asked for stands at a random place among fewer pairs, here it is any earlier pair. Its code
trains each length on its own, here longer examples are those of a model that was trained on short
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Flag
from seqzoo.data.probes.mad_recall import MOTIF, fuzzy_recall, recall
from seqzoo.data.probes.probe import IGNORE, Examples, Probe, asked_last, at_lengths
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError

Kind = Literal[
    "compression", "fuzzy_recall", "recall", "memorization", "noisy_recall", "selective_copying"
]
Random = np.random.Generator
NOISE = 16  # tokens of noise of noisy recall
COPIED = 16  # letters of selective copying


def compression(random: Random, rows: int, *, length: int, vocab_size: int) -> Examples:
    """Random tokens and a mark; at that mark and at as many more, the tokens in order."""
    tokens = random.integers(vocab_size - 1, size=(rows, length - 1))
    read = np.concatenate((tokens, np.full_like(tokens, vocab_size - 1)), 1)
    return Examples(read, asked_last(read, tokens))


def memorization(random: Random, rows: int, *, length: int, vocab_size: int) -> Examples:
    """Keys with a mark behind each, at which the key's value is asked for. Which value a key has is
    the same in every example, so that the weights have to hold it."""
    keys = (vocab_size - 1) // 2
    values = keys + np.random.default_rng(12345).permutation(keys)  # a value for each key
    asked = random.integers(keys, size=(rows, length // 2))
    tokens = np.stack((asked, np.full_like(asked, vocab_size - 1)), 2)
    targets = np.stack((np.full_like(asked, IGNORE), values[asked]), 2)
    return Examples(tokens.reshape(rows, -1), targets.reshape(rows, -1))


def selective_copying(random: Random, rows: int, *, length: int, vocab_size: int) -> Examples:
    """Letters with blanks before them, a mark, and blanks at each of which the next letter is
    asked for. Each of the blanks before the mark stands at a letter that is drawn for it."""
    blank, mark = vocab_size - 2, vocab_size - 1
    letters = random.integers(blank, size=(rows, COPIED))
    n_blanks = length - 2 * COPIED - 1
    before = random.multinomial(n_blanks, [1 / COPIED] * COPIED, size=rows).cumsum(1)
    stream = np.full((rows, length), blank)
    np.put_along_axis(stream, before + np.arange(COPIED), letters, 1)
    stream[:, n_blanks + COPIED] = mark
    return Examples(stream, asked_last(stream, letters))


# ---- the table of the six, and the keys

MAKE: dict[str, tuple[Callable[..., Examples], int, int, int]] = {
    # the examples of a kind; the paper's length and vocabulary; the least length
    "compression": (compression, 32, 16, 2),
    "fuzzy_recall": (fuzzy_recall, 128, 16, 4 * MOTIF),
    "recall": (recall, 128, 16, 4),
    "memorization": (memorization, 32, 256, 2),
    "noisy_recall": (partial(recall, noise=NOISE), 128, 32, 4),
    "selective_copying": (selective_copying, 256, 16, 2 * COPIED + 2),
}
RECALL = ("fuzzy_recall", "recall", "noisy_recall")
LEAST_VOCAB = {"noisy_recall": NOISE + 4, "fuzzy_recall": 2 * MOTIF + 1}


def every_next_token(make: Callable[..., Examples]) -> Callable[..., Examples]:
    """The same examples, with the next token asked for at every place."""

    def training(random: Random, rows: int, **sizes: int) -> Examples:
        inputs, targets, _ = make(random, rows, **sizes)
        return Examples(inputs, np.concatenate((inputs[:, 1:], targets[:, -1:]), 1))

    return training


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    kind: Kind,
    length: Count | None,
    vocab_size: Count | None,
    test_lengths: list[Count] | None,
    next_tokens: Flag,
) -> Probe:
    """The examples of the task `mad`.

    Args:
        length, vocab_size: None: the paper's.
        test_lengths: None: twice the length that is trained.
        next_tokens: whether the three recall tasks are trained on every next token, as in the
            paper's code; measured are the values alone.

    Raises:
        UserError: a length or vocabulary without room for what is asked.
    """
    make, usual_length, usual_vocab, least = MAKE[kind]
    length, vocab_size = length or usual_length, vocab_size or usual_vocab
    points = [
        {"length": length},
        *at_lengths([2 * length] if test_lengths is None else test_lengths),
    ]
    for number, point in enumerate(points):
        if point["length"] < least or point["length"] % 2:
            key = "test_lengths" if number else "length"
            raise UserError(
                f"task.{key}: {point['length']}: task.kind={kind} needs an even length, {least} or "
                "more"
            )
    if vocab_size < LEAST_VOCAB.get(kind, 4):
        raise UserError(
            f"task.vocab_size={vocab_size}: task.kind={kind} needs {LEAST_VOCAB.get(kind, 4)} or "
            "more"
        )
    made = partial(make, vocab_size=vocab_size)
    training: Callable[..., Examples] = made
    if kind == "fuzzy_recall":
        training = partial(made, training=True)
    if next_tokens and kind in RECALL:
        training = every_next_token(training)
    return Probe(
        name="mad",
        note=f"{kind} of {length} tokens, {vocab_size} different ones",
        symbols=list(map(str, range(vocab_size))),
        make=made,
        train=points[:1],
        test=points[1:],
        make_training=training,
    )
