"""Attention weights, for those who want to see them.

An operation whose result is a weighted sum of values calls `watch` with a function that computes
its weights. The function is called only inside ``with watching() as calls:``, and only when one of
`calls` is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

Weights = Callable[[], Tensor]  # (H, T, S), of the first row of the batch
Over = Literal["past", "source"]  # what the weighted values come from
_watching: ContextVar[tuple[Over, list[Weights]] | None] = ContextVar(
    "seqzoo_watching", default=None
)


@contextmanager
def watching(over: Over = "past") -> Iterator[list[Weights]]:
    """Collect the weights of every operation inside that sums over the past, or over a source, in
    the order in which they run."""
    calls: list[Weights] = []
    token = _watching.set((over, calls))
    try:
        yield calls
    finally:
        _watching.reset(token)


@contextmanager
def unwatched() -> Iterator[None]:
    """Collect nothing inside: for operations that are one part of another."""
    token = _watching.set(None)
    try:
        yield
    finally:
        _watching.reset(token)


def watch(weights: Weights, over: Over = "past") -> None:
    """Offer the weights of an operation over the past or over a source."""
    watching = None if torch.compiler.is_compiling() else _watching.get()
    if watching is not None and watching[0] == over:
        watching[1].append(weights)
