"""One decoding step of a model, prepared: recorded once, then replayed for every token. On CUDA it
is a `GraphStep`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqzoo import ops
from seqzoo.decoding.graph import GraphStep
from seqzoo.decoding.replayed import ReplayedStep, before_writing
from seqzoo.errors import UserError
from seqzoo.models.language_model import TokenModel
from seqzoo.ops import attention
from seqzoo.ops.native import available, library
from seqzoo.ops.native.program import Recorder, Unrecordable
from seqzoo.state import State, grows, leaves, rebuild

WORTH = 16  # tokens from which recording a step, some tens of milliseconds, pays
WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class PreparedStep(ReplayedStep):
    """By operations that were recorded once.

    Args:
        state: before the first token; it keeps its values.
        room: tokens that can be read, which a cache has to have memory for.
        weights: the type in which products read their weights, a key of `WEIGHTS`. Sums, states
            and whatever else is computed stay in float32.

    Raises:
        Unrecordable: what the model computes cannot be replayed.
    """

    kind = "prepared"

    def __init__(
        self, model: TokenModel, state: State, rows: int, room: int, weights: str = "float32"
    ) -> None:
        super().__init__(state, rows, room)
        self._cache_of: list[_Cache | None] = []  # of each leaf
        self._caches: dict[int, _Cache] = {}  # by the addresses of their memory
        with torch.inference_mode(False), torch.no_grad():
            self._tokens = torch.zeros(rows, 1, dtype=torch.int64)
            self._read = torch.zeros(1, dtype=torch.int64)  # tokens since the beginning
            own = [leaf.clone() for leaf in leaves(state)]
            self._record(model, own, Recorder(WEIGHTS[weights]))

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
        with recorder.paused():
            memory = q.new_zeros(2, B, G, scoring.window or S + self.room, K)
            memory[0, :, :, :S], memory[1, :, :, :S] = past[:2]
            y = q.new_zeros(B, H, 1, K)
            caches = list(memory.unbind(0))
            if log_f is not None:
                caches.append(log_f.new_zeros(B, H, memory.shape[3], 1))
                caches[2][:, :, :S] = past[2]
        recorder.follow(y, *caches)
        sizes = B, H, G, K, S, scoring.window or 0
        own = self._read, position, scoring.sinks, log_f, caches[2] if log_f is not None else None
        recorder.add("attend", *sizes, y, q, k, v, *caches[:2], *own, float(scoring.softcap or 0))
        self._caches |= {part.data_ptr(): _Cache(part, S, scoring.window) for part in caches}
        return y, *caches

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
        return [x if cache is None else cache.filled(read) for x, cache in pairs]


class _Cache(NamedTuple):
    """Memory (B, G, capacity, K) for keys or values, of which `before` are older than the step; of
    a window, whose places are used in turn, W."""

    memory: Tensor
    before: int
    window: int | None

    def filled(self, read: int) -> Tensor:
        """The places that hold something after `read` tokens."""
        return self.memory if self.window else self.memory[:, :, : self.before + read]

    def kept(self, read: int) -> Tensor:
        """A copy of what a state holds after `read` tokens."""
        if self.window is None:
            return self.filled(read).clone()
        places = (self.before + read - torch.arange(self.window - 1, 0, -1)) % self.window
        return self.memory[:, :, places]


def prepare(
    model: TokenModel, state: State, rows: int, room: int, weights: str = "float32"
) -> ReplayedStep | None:
    """A prepared step for up to `room` tokens of `rows` rows; None where it does not pay, or where
    there is none for the model or the device.

    Raises:
        UserError: weights in fewer bits were asked for, and there is no prepared step for them.
    """
    weight: Any = model.embedding.weight
    if weights != "float32":
        return _narrow(model, state, rows, room, weights) if room > 0 else None
    if room < WORTH or torch.is_autocast_enabled(weight.device.type):
        return None
    try:
        if weight.device.type == "cuda" and not grows(state):
            return GraphStep(model, state, rows, room)
        if weight.dtype == torch.float32 and available(weight, 1):
            return PreparedStep(model, state, rows, room)
    except Unrecordable:
        pass
    return None


def _narrow(model: TokenModel, state: State, rows: int, room: int, weights: str) -> PreparedStep:
    """A prepared step with weights in fewer bits, however few the tokens."""
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
            return PreparedStep(model, state, rows, room, weights)
        except Unrecordable as error:
            reason = f"no step can be prepared for this model ({error})"
    raise UserError(f"weights={weights}: {reason}, or use weights=float32")
