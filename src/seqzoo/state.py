"""What a state is, and the operations on states.

A state is a nested tuple of tensors: a mixer returns a ``NamedTuple`` with the paper's field names,
a block the tuple of its mixers' states, a model the tuple of its blocks'. ``None`` is the one empty
state, of a whole model as of any part; ``()`` is the state of a mixer without memory. Every leaf
has the batch as its first dimension.

A ``NamedTuple`` may have four methods: ``last(n)``, which marks a part that grows with every token
and keeps its newest n; ``newest(n)``, which marks a part with a fixed number of places, one for a
token, and keeps those of the newest n; ``accumulated()``, the leaves that sum over time, where not
all do; and ``initial()``, the state before the first token, where that is not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

State = Any  # Tensor | tuple[State, ...] | None, a recursive type
S = TypeVar("S")


def leaves(state: State) -> Iterator[Tensor]:
    """Every tensor of a state, depth first, as `rebuild` takes them."""
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
    """A state with the structure of `template`, from tensors in the order of `leaves`, of any
    shape."""
    rest = iter(tensors)
    state = map_leaves(lambda _: next(rest), template)
    if next(rest, None) is not None:
        raise ValueError(f"{len(tensors)} tensors are more than the state has")
    return state


def detach(state: S) -> S:
    """The same values without their graph, as for truncated back-propagation."""
    return map_leaves(Tensor.detach, state)


def select(state: S, rows: Tensor) -> S:
    """Rows of the batch, by an index or boolean tensor."""
    return map_leaves(lambda leaf: leaf[rows], state)


def to(state: S, device: torch.device | str) -> S:
    """The state on another device."""
    return map_leaves(lambda leaf: leaf.to(device), state)


def nbytes(state: State) -> int:
    """Bytes of a state, summed from its tensors."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))


def trim(state: S, n: int) -> S:
    """The state with at most `n` tokens in every part that grows; other parts are unchanged."""
    return _cut(state, "last", n)


def newest(state: S, n: int) -> S:
    """The state without the places that are empty after `n` tokens; other parts are unchanged."""
    return _cut(state, "newest", n)


def _cut(state: S, method: str, n: int) -> S:
    if state is None or isinstance(state, Tensor):
        return state
    cut = getattr(state, method, None)  # a method; a field of that name is none
    if callable(cut):
        return cast(S, cut(n))
    return _like(state, [_cut(part, method, n) for part in cast(tuple[State, ...], state)])


def windows(state: State) -> set[int]:
    """How many tokens each part with one place a token sees: those of its places, and its own."""
    if state is None or isinstance(state, Tensor):
        return set()
    if callable(getattr(state, "newest", None)):
        return {1 + state[0].shape[2]}
    return set().union(*(windows(part) for part in state))


def grows(state: State) -> bool:
    """Whether any part of the state grows with every token."""
    if state is None or isinstance(state, Tensor):
        return False
    return callable(getattr(state, "last", None)) or any(grows(part) for part in state)


def initial(state: S) -> S:
    """The papers' initial state, with the structure and batch of a given one: zeros, unless a part
    has a method ``initial()``."""
    if state is None:
        return state
    if isinstance(state, Tensor):
        return cast(S, torch.zeros_like(state))
    if hasattr(state, "initial"):
        return cast(S, state.initial())
    return _like(state, [initial(part) for part in cast(tuple[State, ...], state)])


def _like(state: S, parts: list[Any]) -> S:
    kind: Any = type(state)
    return cast(S, kind(*parts) if hasattr(kind, "_fields") else tuple(parts))
