"""A decoding step that is replayed on the same memory for every token: what all kinds share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import compress

import torch
from torch import Tensor

from seqzoo.ops.registry import record
from seqzoo.state import State, leaves, rebuild


class ReplayedStep:
    """``step(tokens)`` is the logits (B, V) that ``model(tokens[:, None], state)`` gives for tokens
    (B,); the state is inside.

    The model's weights must stay as they are. The next call overwrites the logits. On a CPU a token
    outside of the vocabulary, or one for which there is no position, is an IndexError, and changes
    no state.

    Attributes:
        rows: B; room: tokens that can still be read.
    """

    kind: str  # as `ops.recording` names it
    _tokens: Tensor  # (B, 1)
    _logits: Tensor  # (B, V)
    _leaves: list[Tensor]  # of the state
    _replay: Callable[[], object]

    def __init__(self, template: State, rows: int, room: int) -> None:
        self._template, self.rows, self.room, self._first_room = template, rows, room, room

    def __call__(self, tokens: Tensor) -> Tensor:
        if not self.room:
            raise IndexError("no room for another token")
        record("step", self.kind)
        self._tokens[:, 0] = tokens
        self._replay()
        self.room -= 1
        return self._logits

    def reorder(self, rows: Tensor) -> None:
        """Go on in row i from the state that row `rows[i]` has now, for as many rows."""
        for own in self._seen():
            own.copy_(own[rows])

    def rewind(self) -> None:
        """Have room again for as many tokens as at first, and count positions from there."""
        self.room = self._first_room
        own, first = self._positions
        if own:
            torch._foreach_copy_(own, first)

    @cached_property
    def _positions(self) -> tuple[list[Tensor], list[Tensor]]:
        """What counts tokens in the state: now, and at first."""
        counts = [not leaf.is_floating_point() for leaf in self._leaves]
        now, first = self._leaves, leaves(self._template)
        return list(compress(now, counts)), list(compress(first, counts))

    def state(self) -> State:
        """The state after the tokens read so far: a copy."""
        return rebuild(self._template, [leaf.clone() for leaf in self._seen()])

    def _seen(self) -> list[Tensor]:
        """The leaves of the state, as far as tokens were read."""
        return self._leaves


def before_writing(own: Sequence[Tensor], after: Iterable[Tensor]) -> list[Tensor]:
    """The leaves `after` a token, to be written to `own`: a part of the state that has moved to
    another part is copied before anything is written there."""
    memory = {leaf.untyped_storage().data_ptr() for leaf in own}
    return [
        leaf.clone()
        if leaf.untyped_storage().data_ptr() in memory and leaf.data_ptr() != before.data_ptr()
        else leaf
        for before, leaf in zip(own, after, strict=True)
    ]
