"""Pure sequence maths: each operation has a `naive` definition, written straight from its paper's
equations, beside its fast forms.

Which form runs is decided here and nowhere else. ``with backend("naive"):`` forces one for
everything inside (tests hold the fast forms to the definitions this way); without it `choose` picks
by device, dtype and length, from the measurements named beside each rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

BACKENDS: dict[str, tuple[str, ...]] = {
    "attention": ("naive", "sdpa"),
    "linear_scan": ("naive", "loop", "scan"),
    "matrix_state": ("naive", "chunked"),
    "recurrent": ("naive", "torch"),
    "wkv4": ("naive", "scan", "chunked"),
}
_forced: ContextVar[str | None] = ContextVar("seqzoo_backend", default=None)
_chosen: ContextVar[set[str] | None] = ContextVar("seqzoo_chosen", default=None)
_watched: ContextVar[tuple[str, list[Callable[[], Tensor]]] | None] = ContextVar(
    "seqzoo_watched", default=None
)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force the form `name` wherever an operation has it.

    Raises:
        ValueError: no operation has a form of that name.
    """
    if not any(name in forms for forms in BACKENDS.values()):
        known = sorted({form for forms in BACKENDS.values() for form in forms})
        raise ValueError(f"no backend {name!r}: choose one of {', '.join(known)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def recording() -> Iterator[set[str]]:
    """Collects the forms that run inside, such as `attention sdpa`."""
    chosen: set[str] = set()
    token = _chosen.set(chosen)
    try:
        yield chosen
    finally:
        _chosen.reset(token)


@contextmanager
def watching(of: str = "past") -> Iterator[list[Callable[[], Tensor]]]:
    """Collects, of every operation inside that is a weighted sum of values `of` the past or of a
    source, in order, what gives its weights (H, T, S) for the first row of the batch."""
    calls: list[Callable[[], Tensor]] = []
    token = _watched.set((of, calls))
    try:
        yield calls
    finally:
        _watched.reset(token)


@contextmanager
def unwatched() -> Iterator[None]:
    """For an operation inside that is only a part of one."""
    token = _watched.set(None)
    try:
        yield
    finally:
        _watched.reset(token)


def watch(weights: Callable[[], Tensor], of: str = "past") -> None:
    """Called by such an operation; `weights` is evaluated only if somebody watches, later."""
    wanted = None if torch.compiler.is_compiling() else _watched.get()
    if wanted is not None and wanted[0] == of:
        wanted[1].append(weights)


def choose(op: str, x: Tensor, length: int) -> str:
    """The form of `op` to run on inputs like `x` that attend or recur over `length` tokens."""
    return note(op, _form(op, x, length))


def note(op: str, form: str) -> str:
    """Say that a form runs, also where it takes over from another."""
    chosen = None if torch.compiler.is_compiling() else _chosen.get()
    if chosen is not None:
        chosen.add(f"{op} {form}")
    return form


def _form(op: str, x: Tensor, length: int) -> str:
    forced = None if torch.compiler.is_compiling() else _forced.get()
    if forced in BACKENDS[op]:
        return forced
    if op == "attention":
        # On a CPU in bfloat16 the flash kernel of SDPA loses to two matrix products and a softmax
        # while the score matrix still fits the cache, and for a single query always: see
        # `scripts/measure_ops.py`.
        small = length <= 512 or x.shape[-2] == 1
        plain = x.device.type == "cpu" and x.dtype == torch.bfloat16 and small
        return "naive" if plain else "sdpa"
    if op == "linear_scan" and x.device.type == "cpu":
        return "loop"
    return BACKENDS[op][-1]


def unit(x: Tensor) -> Tensor:
    """x with its last dimension scaled to length 1, as `F.normalize` does it, whose reduction is
    slow on a CPU."""
    return x * x.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()


def float32_or_wider(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as float32, or as they are where they are wider: what accumulates must not be
    rounded to 16 bits."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)
