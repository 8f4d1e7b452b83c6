"""What a state is, and the few things anyone may do with one.

A state is a nested tuple of tensors: a mixer returns a ``NamedTuple`` with the paper's field names,
a block a tuple of its mixers' states, a model a tuple of its blocks'. ``None`` is the one empty
state, for a whole model as for any part; ``()`` is the state of a mixer that remembers nothing.
Every leaf has the batch as its first dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

State = Any  # Tensor | tuple[State, ...] | None; recursive, which the type checker need not see
S = TypeVar("S")


def leaves(state: State) -> Iterator[Tensor]:
    """Every tensor of a state, depth first: the order `rebuild` takes them back in."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from leaves(part)


def map_leaves(fn: Callable[[Tensor], Tensor], state: S) -> S:
    """The same state with `fn` applied to every tensor."""
    if state is None:
        return state
    if isinstance(state, Tensor):
        return cast(S, fn(state))
    return _like(state, [map_leaves(fn, part) for part in cast(tuple[State, ...], state)])


def rebuild(template: S, tensors: Sequence[Tensor]) -> S:
    """A state of the structure of `template` from tensors in the order of `leaves`; their shapes
    are free."""
    rest = iter(tensors)
    state = map_leaves(lambda _: next(rest), template)
    if next(rest, None) is not None:
        raise ValueError(f"{len(tensors)} tensors are more than the state has")
    return state


def detach(state: S) -> S:
    """The same values, cut from the graph: where truncated back-propagation stops."""
    return map_leaves(Tensor.detach, state)


def select(state: S, rows: Tensor) -> S:
    """Rows of the batch, chosen by an index or boolean tensor (beam search, sequences that
    ended)."""
    return map_leaves(lambda leaf: leaf[rows], state)


def to(state: S, device: torch.device | str) -> S:
    """The state on another device."""
    return map_leaves(lambda leaf: leaf.to(device), state)


def nbytes(state: State) -> int:
    """Bytes the state holds, summed from its tensors."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))


def trim(state: S, n: int) -> S:
    """Keep at most `n` tokens of every part that grows with what was read; bounded parts are
    returned as they are.

    A part that grows says so by having a method ``last(n)``.
    """
    if state is None or isinstance(state, Tensor):
        return state
    if hasattr(state, "last"):
        return cast(S, state.last(n))
    return _like(state, [trim(part, n) for part in cast(tuple[State, ...], state)])


def grows(state: State) -> bool:
    """Whether any part of the state grows with what was read."""
    if state is None or isinstance(state, Tensor):
        return False
    return hasattr(state, "last") or any(grows(part) for part in state)


def _like(state: S, parts: list[Any]) -> S:
    kind: Any = type(state)
    return cast(S, kind(*parts) if hasattr(kind, "_fields") else tuple(parts))
