"""One decoding step of a model, prepared: recorded once, then replayed for every token. On CUDA it
is a `GraphStep`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo import ops
from seqzoo.decoding.graph import GraphStep
from seqzoo.decoding.replayed import ReplayedStep, before_writing
from seqzoo.errors import UserError
from seqzoo.models.language_model import TokenModel
from seqzoo.ops import attention
from seqzoo.ops.native import available, expect, library
from seqzoo.ops.native.instructions import narrow, padded
from seqzoo.ops.native.program import Recorder, Unrecordable
from seqzoo.state import State, grows, leaves, rebuild

WORTH = 16  # tokens from which recording a step, some tens of milliseconds, pays
MOST_ROWS = 64  # of the prepared step; the products of more rows are faster in oneDNN
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class Types(NamedTuple):
    """The types, keys of `TYPES`, in which a prepared step keeps what it reads most bytes of. Sums
    and whatever else is computed stay in float32.

    Attributes:
        weights: of the matrices of products.
        kv_cache: of the keys and values of attention to the tokens before.
    """

    weights: str = "float32"
    kv_cache: str = "float32"

    def narrow(self) -> str:
        """Those in fewer bits, such as `weights=int8`; empty if there is none."""
        pairs = zip(self._fields, self, strict=True)
        return ", ".join(f"{key}={kind}" for key, kind in pairs if kind != "float32")


EXACT = Types()


class PreparedStep(ReplayedStep):
    """By operations that were recorded once.

    Args:
        state: before the first token; it keeps its values.
        room: tokens that can be read, which a cache has to have memory for.
        types: in which weights and caches are stored.

    Raises:
        Unrecordable: what the model computes cannot be replayed.
        UserError: a cache in fewer bits is asked for, and the model has none.
    """

    kind = "prepared"

    def __init__(
        self, model: TokenModel, state: State, rows: int, room: int, types: Types = EXACT
    ) -> None:
        super().__init__(state, rows, room)
        self._kv_cache = TYPES[types.kv_cache]
        self._cache_of: list[_Cache | None] = []  # of each leaf
        self._caches: dict[int, _Cache] = {}  # by the addresses of their memory
        with torch.inference_mode(False), torch.no_grad():
            self._tokens = torch.zeros(rows, 1, dtype=torch.int64)
            self._read = torch.zeros(1, dtype=torch.int64)  # tokens since the beginning
            own = [leaf.clone() for leaf in leaves(state)]
            self._record(model, own, Recorder(TYPES[types.weights]))
        if types.kv_cache != "float32" and not self._caches:
            raise UserError(
                f"kv_cache={types.kv_cache}: this model keeps no keys and values of attention that "
                "can be stored so: use kv_cache=float32"
            )

    def _record(self, model: TokenModel, own: list[Tensor], recorder: Recorder) -> None:
        with recorder, ops.backend("naive"):
            recorder.follow(self._tokens, self._read, *own)
            token = attention.one_token_reader.set(partial(self._attend, recorder))
            try:
                logits, after = model(self._tokens, rebuild(self._template, own))
            finally:
                attention.one_token_reader.reset(token)
            moved = before_writing(own, leaves(after))
        self._leaves, self._cache_of = [], []
        for before, leaf in zip(own, moved, strict=True):
            cache = self._caches.get(leaf.data_ptr())
            if cache is None and before.shape != leaf.shape:
                raise Unrecordable("a state that grows")
            if cache is None:
                recorder.copy(before, leaf)
            self._leaves.append(before)
            self._cache_of.append(cache)
        recorder.add("affine", 1, 1, 1, 1, self._read, self._read, 1.0, 1.0)
        self._logits = logits[:, -1]
        self._replay = recorder.finish()

    def _attend(
        self,
        recorder: Recorder,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: Sequence[Tensor],
        scoring: attention.Scoring = attention.PLAIN,
        position: Tensor | None = None,
        log_f: Tensor | None = None,
    ) -> attention.Cached:
        """Attention to a cache with room for all tokens to come, or for those of a window, as one
        instruction."""
        (B, H, _, K), (G, S) = q.shape, past[0].shape[1:3]
        for x in (q, k, v, log_f, scoring.sinks):
            if x is not None and x.dtype != torch.float32:
                raise Unrecordable(f"attention in {x.dtype}")
        for own, new in zip(past, (k, v, log_f), strict=False):
            expect(own, B, new.shape[1], S, new.shape[3])  # type: ignore[union-attr]
        with recorder.paused():
            room = scoring.window or S + self.room
            keys, values = (_Cache.of(x, room, scoring.window, self._kv_cache) for x in past[:2])
            y = q.new_zeros(B, H, 1, K)
            caches = [keys, values]
            if log_f is not None:
                caches.append(_Cache.of(past[2], room, None, torch.float32))
        recorder.follow(y, *(part for cache in caches for part in cache.parts()))
        sizes = B, H, G, K, S, scoring.window or 0
        recorder.add(
            "attend",
            *sizes,
            *(y, q, k, v, keys.memory, keys.scales, values.memory, values.scales),
            *(self._read, position, scoring.sinks, log_f),
            caches[2].memory if log_f is not None else None,
            float(scoring.softcap or 0),
        )
        self._caches |= {cache.memory.data_ptr(): cache for cache in caches}
        return y, *(cache.memory for cache in caches)

    def rewind(self) -> None:
        """Have room again for as many tokens as at first, by forgetting those in the caches."""
        super().rewind()
        self._read.zero_()

    def state(self) -> State:
        read = int(self._read)
        pairs = zip(self._leaves, self._cache_of, strict=True)
        return rebuild(
            self._template, [x.clone() if cache is None else cache.kept(read) for x, cache in pairs]
        )

    def _seen(self) -> list[Tensor]:
        """Caches without the memory for tokens to come."""
        read = int(self._read)
        pairs = zip(self._leaves, self._cache_of, strict=True)
        return [y for x, cache in pairs for y in ([x] if cache is None else cache.filled(read))]


class _Cache(NamedTuple):
    """Memory (B, G, capacity, K) for keys or values, of which `before` are older than the step; of
    a window, whose places are used in turn, W. In fewer bits K is padded to whole vectors, and in
    int8 there are scales (B, G, capacity)."""

    memory: Tensor
    scales: Tensor | None
    before: int
    window: int | None
    width: int  # K

    @classmethod
    def of(cls, past: Tensor, room: int, window: int | None, dtype: torch.dtype) -> _Cache:
        """The keys or values (B, G, S, K) so far, in a type, with room for others."""
        S, K = past.shape[2:]
        rows, scales = past.float(), None
        if dtype != torch.float32:
            rows, scales = narrow(rows, dtype)
            rows = padded(rows)
        memory = rows.new_zeros(*past.shape[:2], room, rows.shape[3])
        memory[:, :, :S] = rows
        if scales is not None:
            scales = F.pad(scales, (0, room - S))
        return cls(memory, scales, S, window, K)

    def parts(self) -> list[Tensor]:
        return [self.memory] if self.scales is None else [self.memory, self.scales]

    def filled(self, read: int) -> list[Tensor]:
        """The places of each part that hold something after `read` tokens."""
        if self.window:
            return self.parts()
        return [part[:, :, : self.before + read] for part in self.parts()]

    def kept(self, read: int) -> Tensor:
        """A copy of what a state holds after `read` tokens."""
        places = torch.arange(self.before + read)
        if self.window is not None:
            places = (self.before + read - torch.arange(self.window - 1, 0, -1)) % self.window
        rows = self.memory[:, :, places, : self.width].float()
        return rows if self.scales is None else rows * self.scales[:, :, places, None]


def prepare(
    model: TokenModel, state: State, rows: int, room: int, types: Types = EXACT
) -> ReplayedStep | None:
    """A prepared step for up to `room` tokens of `rows` rows; None where it does not pay, or where
    there is none for the model or the device.

    Raises:
        UserError: fewer bits were asked for, and there is no prepared step for them.
    """
    weight: Any = model.embedding.weight
    if types.narrow():
        return _narrow(model, state, rows, room, types) if room > 0 else None
    if room < WORTH or torch.is_autocast_enabled(weight.device.type):
        return None
    try:
        if weight.device.type == "cuda" and not grows(state):
            return GraphStep(model, state, rows, room)
        if weight.dtype == torch.float32 and rows <= MOST_ROWS and available(weight, 1):
            return PreparedStep(model, state, rows, room)
    except Unrecordable:
        pass
    return None


def _narrow(model: TokenModel, state: State, rows: int, room: int, types: Types) -> PreparedStep:
    """A prepared step in fewer bits, however few the tokens."""
    weight: Any = model.embedding.weight
    reason = None
    if weight.device.type != "cpu":
        reason = f"the model is on {weight.device}: load it with device=cpu"
    elif weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        reason = "the model computes in another type than float32"
    elif library() is None:
        reason = "it needs the kernels in C++: install g++"
    if reason is None:
        try:
            return PreparedStep(model, state, rows, room, types)
        except Unrecordable as error:
            reason = f"no step can be prepared for this model ({error})"
    raise UserError(f"{types.narrow()}: {reason}, or use float32")
