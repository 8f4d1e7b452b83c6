"""Batches of sequences of similar length, up to a number of tokens, and their padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


def lengths(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The number of tokens of each row."""
    return np.array([len(row) for row in rows], dtype=np.int64)


def padded(rows: Sequence[np.ndarray], fill: int) -> Tensor:
    """Rows as one tensor (B, T), filled up on the right."""
    out = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def by_length(
    order: np.ndarray,
    keys: Sequence[np.ndarray],
    widths: np.ndarray,
    *,
    max_tokens: int,
    apart: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """The row numbers of `order`, sorted by length and cut into batches.

    Args:
        keys: what to sort by, the last one first; ties stay in the order given.
        widths: (N, n), what a row takes in each of the tensors it is padded in.
        max_tokens: of a batch, padding included.
        apart: a number a row; rows with different numbers never share a batch.
    """
    order = order[np.lexsort([key[order] for key in keys])]
    begin, widest = 0, widths[order[:1]].sum(0)
    for end, row in enumerate(order):
        wider = np.maximum(widest, widths[row])
        full = (end + 1 - begin) * wider.sum() > max_tokens
        other = apart is not None and apart[row] != apart[order[begin]]
        if end > begin and (full or other):
            yield order[begin:end]
            begin, wider = end, widths[row]
        widest = wider
    if len(order):
        yield order[begin:]


class Epochs:
    """Batches of row numbers, epoch after epoch, as many in each.

    Rows of about one length are put together, with ties in an order drawn anew; the batches then
    come in an order drawn anew.

    Args:
        n_rows: of the training data.
        cut: cuts an order of the rows into batches.
        seed: of the draws, together with the epoch's number.
    """

    def __init__(
        self,
        n_rows: int,
        cut: Callable[[np.ndarray], Iterator[np.ndarray]],
        seed: tuple[int, int],
    ) -> None:
        self.n_rows, self.cut, self.seed = n_rows, cut, seed
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])

    @cached_property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        return len(self.batches(0))

    def rows(self, step: int) -> np.ndarray:
        """The rows of a step's batch."""
        epoch, index = divmod(step, self.n_batches)
        return self.batches(epoch)[index]

    def batches(self, epoch: int) -> list[np.ndarray]:
        if self._plan[0] != epoch:
            draw = np.random.default_rng((*self.seed, epoch))
            batches = list(self.cut(draw.permutation(self.n_rows)))
            self._plan = epoch, [batches[i] for i in draw.permutation(len(batches))]
        return self._plan[1]
