"""A class for a whole text: a stack of layers reads it, its outputs are pooled into one vector, and
a linear layer gives the logits of the classes.

B batch, T tokens, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Dropout, Flag
from seqzoo.models.language_model import TokenModel, run_layers
from seqzoo.ops.tensors import to_device
from seqzoo.state import State

Pooling = Literal["last", "mean", "max"]


class Mean(NamedTuple):
    """The running mean of outputs."""

    total: Tensor  # (B, D), float32 at least
    n: Tensor  # (B,) tokens


class Max(NamedTuple):
    """The running maximum of outputs."""

    largest: Tensor  # (B, D)


class ClassifierState(NamedTuple):
    """What is carried from one chunk of a text to the next."""

    layers: State
    pooled: State  # Mean, Max, or () for pooling=last


class Classifier(TokenModel):
    """Embedding, layers that each map ``(x, state)`` to ``(y, state)``, pooling, and a head over
    the classes.

    Args:
        embedding: of the tokens.
        norm_in: what follows the embedding.
        stacks: the layers; two stacks where the second reads each text from its end.
        norms: what follows each stack.
        dropout: of the embedded tokens.
        pooling: how the outputs of a text's tokens become one vector: their `mean` or `max` in each
            number, or the `last` one read.
        bidirectional: whether a text is read from both ends, by two stacks, or by one whose mixers
            see the whole text.
        n_classes: C.
        max_len: the most tokens of a text; None where there is no end.
    """

    @checked()
    def __init__(
        self,
        *,
        embedding: nn.Embedding,
        norm_in: nn.Module,
        stacks: Sequence[Sequence[nn.Module]],
        norms: Sequence[nn.Module],
        dropout: Dropout,
        pooling: Pooling,
        bidirectional: Flag,
        n_classes: Count,
        max_len: Count | None,
    ) -> None:
        super().__init__(embedding, norm_in, dropout)
        self.stacks = nn.ModuleList(nn.ModuleList(layers) for layers in stacks)
        self.norms = nn.ModuleList(norms)
        self.pooling, self.reads_both_ways, self.max_len = pooling, bidirectional, max_len
        self.head = nn.Linear(len(stacks) * embedding.embedding_dim, n_classes)

    def forward(
        self, tokens: Tensor, state: State = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, State]:
        """Logits of the classes after reading tokens (B, T): of all that was read since the empty
        state.

        Args:
            state: what the last call returned, to go on with the same texts; None at first.
            lengths: tokens of each row, 1 at least; the rest of it is padding on the right. None:
                every row is full.

        Returns:
            Logits (B, C), and the state after the last tokens. It is None where a row is padded, as
            no state is then that of every row's last token, and where texts are read from both
            ends.

        Raises:
            ValueError: rows of impossible lengths; a state where texts are read from both ends.
        """
        B, T = tokens.shape
        sizes = [T] * B if lengths is None else list(lengths)
        if len(sizes) != B or not all(1 <= n <= T for n in sizes):
            raise ValueError(f"lengths {sizes} of {B} rows must be from 1 to {T}")
        if self.reads_both_ways:
            if state is not None:
                raise ValueError("a text that is read from both ends has to be read at once")
            read = self._two_stacks if len(self.stacks) == 2 else self._one_full_stack
            return self.head(read(tokens, sizes)), None
        x = self.embed(tokens)
        before: ClassifierState = state or ClassifierState(None, None)
        y, layers = run_layers(self.stacks[0], x, before.layers)  # type: ignore[arg-type]
        features, pooled = self._pool(self.norms[0](y), _tensor(sizes, x), before.pooled)
        after = ClassifierState(layers, pooled) if min(sizes) == T else None
        return self.head(features), after

    def _one_full_stack(self, tokens: Tensor, sizes: list[int]) -> Tensor:
        """Features (B, D) by mixers that see the whole text: rows of one length are read together
        and without padding."""
        groups = [[row for row, n in enumerate(sizes) if n == size] for size in sorted(set(sizes))]
        features = []
        for rows in groups:
            x = self.embed(tokens[_tensor(rows, tokens), : sizes[rows[0]]])
            y, _ = run_layers(self.stacks[0], x, None)  # type: ignore[arg-type]
            full = _tensor([y.shape[1]] * len(rows), x)
            features.append(self._pool(self.norms[0](y), full, None)[0])
        order = _tensor([row for rows in groups for row in rows], tokens)
        return torch.cat(features)[order.argsort()]

    def _two_stacks(self, tokens: Tensor, sizes: list[int]) -> Tensor:
        """Features (B, 2 D): each stack's outputs are pooled in the order in which it reads, so
        that the last one has seen the whole text."""
        x = self.embed(tokens)
        lengths = _tensor(sizes, x)
        place = torch.arange(x.shape[1], device=x.device)
        backwards = (lengths[:, None] - 1 - place) % x.shape[1]  # (B, T); padding stays behind
        features = []
        for direction, (layers, norm) in enumerate(zip(self.stacks, self.norms, strict=True)):
            read = x.take_along_dim(backwards[..., None], 1) if direction else x
            y, _ = run_layers(layers, read, None)  # type: ignore[arg-type]
            features.append(self._pool(norm(y), lengths, None)[0])
        return torch.cat(features, -1)

    def _pool(self, y: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """One vector (B, D) for what was read, and the state to go on from: y (B, T, D), of which
        the first `lengths` (B,) of each row are no padding."""
        if self.pooling == "last":
            return y.take_along_dim((lengths - 1)[:, None, None], 1)[:, 0], ()
        padding = (torch.arange(y.shape[1], device=y.device) >= lengths[:, None])[..., None]
        if self.pooling == "max":
            largest = y.masked_fill(padding, -math.inf).amax(1)
            if state is not None:
                largest = torch.maximum(largest, state.largest)
            return largest, Max(largest)
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        total, n = wide.masked_fill(padding, 0).sum(1), lengths
        if state is not None:
            total, n = total + state.total, n + state.n
        return (total / n[:, None]).to(y.dtype), Mean(total, n)

    @property
    def blocks(self) -> list[nn.Module]:
        return [layer for stack in self.stacks for layer in stack]  # type: ignore[attr-defined]


def _tensor(numbers: Sequence[int], like: Tensor) -> Tensor:
    return to_device(torch.tensor(numbers), like.device)
