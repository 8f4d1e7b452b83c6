"""Records the operations of one step of a model, and replays them in C++.

While `Recorder` is active, torch runs a step as usual, and every operation that depends on the
step's inputs is recorded with the addresses of its inputs and of its output, in the format of
`instructions`. All of that memory is kept allocated. A replay then runs the same operations on the
same memory, without Python and torch between them: views cost nothing, and what depends on weights
alone is computed once. An operation that `program.cpp` does not know is replayed by torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqzoo.ops.native import bits, library
from seqzoo.ops.native.instructions import CODES, CONSTANT, FORMS, Unknown, aten, one_input, operand


class Unrecordable(Exception):
    """A step that cannot be replayed: it reads a number from a tensor, say."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations that depend on tensors given to `follow`.

    Args:
        weights: type in which matrices that are the same in every replay are stored for products:
            float32, bfloat16 or int8; see `instructions.narrow`.
    """

    def __init__(self, weights: torch.dtype = torch.float32) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = weights
        self.parts: list[list[int] | Callable[[], None]] = [[]]
        self._paused = False
        self._kept: list[Any] = []  # whatever has an address in the program
        self._changing: set[int] = set()  # addresses of the storages that differ in every replay

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def follow(self, *tensors: Tensor) -> None:
        """What depends on these is to be replayed."""
        self._kept += tensors
        self._changing |= {_storage(x) for x in tensors}

    def changes(self, x: Tensor) -> bool:
        """Whether a tensor differs in every replay."""
        return _storage(x) in self._changing

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Read by torch: where it is true, torch imports its compiler to disable it inside this
        mode, which takes a second. No step is compiled while it is recorded."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._paused:
            return out
        given = list(_tensors((args, kwargs)))
        made = list(_tensors(out))
        self._kept += [*given, *made]
        if func in CONSTANT or not any(map(self.changes, given)):
            return out
        if func is aten._local_scalar_dense.default:
            raise Unrecordable("a number is read from a tensor")
        if func._schema.is_mutable:
            if not self.changes(made[0]):
                raise Unrecordable(f"{func} writes to a constant")
        elif all(_storage(x) in map(_storage, given) for x in made):
            return out  # a view
        self.follow(*made)
        if not self._native(func, args, kwargs, made):
            self.parts += [_again(func, args, kwargs, made), []]
        return out

    def _native(self, func: Any, args: Sequence[Any], kwargs: Any, made: list[Tensor]) -> bool:
        """Write an operation down for C++, if it is one of those."""
        write = FORMS.get(func)
        try:
            words = None if write is None else write(self, made[0], *args, **kwargs)
        except Unknown:
            return False
        if words is None:
            return False
        for one in words:
            self.add(*one)
        return True

    def add(self, name: str, *words: int | float | Tensor | None) -> None:
        """Add an instruction."""
        flat: list[int] = []
        for word in words:
            if isinstance(word, Tensor) or word is None:
                flat += operand(word)
            else:
                flat.append(word if isinstance(word, int) else bits(word))
        part = self.parts[-1]
        assert isinstance(part, list)
        part += [CODES[name], len(flat), *flat]

    def copy(self, to: Tensor, x: Tensor) -> None:
        """Add a copy of x to another tensor of the same shape."""
        for one in one_input("copy")(self, to, x):
            self.add(*one)

    def keep(self, *tensors: Tensor) -> None:
        """Keep tensors that an instruction has the address of."""
        self._kept += tensors

    def finish(self) -> Callable[[], None]:
        """A function that replays what was recorded."""
        kept, kernel = self._kept, library().program_run_float32  # type: ignore[union-attr]
        steps: list[Callable[[], None]] = []
        for part in self.parts:
            if not isinstance(part, list):
                steps.append(part)
            elif part:
                words = (ctypes.c_int64 * (len(part) + 1))(len(part), *part)
                steps.append(partial(_run, kernel, words))

        def replay(kept: Any = kept) -> None:
            for step in steps:
                step()

        return replay


def _run(kernel: Callable[[Any], int], words: Any) -> None:
    if kernel(words):
        raise IndexError(
            "a token is outside of the vocabulary, or a position behind the last that the model has"
        )


def _again(func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> Callable[[], None]:
    """An operation by torch, whose results go to the memory of the recorded ones."""

    def again() -> None:
        for to, x in zip(made, _tensors(func(*args, **kwargs)), strict=True):
            if to is not x:
                to.copy_(x)

    return again


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
