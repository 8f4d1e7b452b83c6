"""One decoding step of a model as a CUDA graph: every kernel of it is launched by one call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqzoo import ops
from seqzoo.models.language_model import TokenModel
from seqzoo.ops.native.program import Unrecordable
from seqzoo.ops.registry import record
from seqzoo.state import State, leaves, rebuild

WARM_UP = 3  # runs before the capture, in which libraries allocate what they keep

Capture = Callable[[Callable[[], None], torch.device], Callable[[], object]]


def cuda_graph(run: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """Run and capture a function; returns what runs its kernels again, on the same memory.

    Raises:
        Unrecordable: it does something that cannot be captured, such as waiting for a number.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError as error:
            raise Unrecordable(f"a step that CUDA cannot capture: {error}") from error
    return graph.replay


class GraphStep:
    """As `PreparedStep`, for models whose state has the same shape after every token.

    Args:
        state: before the first token; it keeps its values.
        room: tokens that can be read.
        capture: what runs a function again without Python.

    Raises:
        Unrecordable: a state that grows, or a step that cannot be captured.
    """

    def __init__(
        self,
        model: TokenModel,
        state: State,
        rows: int,
        room: int,
        capture: Capture = cuda_graph,
    ) -> None:
        self._template, self.rows, self.room, self._first_room = state, rows, room, room
        device = model.embedding.weight.device
        with torch.inference_mode(False), torch.no_grad():
            self._tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
            self._leaves = [leaf.clone() for leaf in leaves(state)]
            self._replay = capture(lambda: self._step(model), device)
            for own, leaf in zip(self._leaves, leaves(state), strict=True):
                own.copy_(leaf)  # the runs before the capture moved it on

    def _step(self, model: TokenModel) -> None:
        """Read the token; the logits and the state after it are written where the last ones
        were."""
        with ops.backend("naive"):  # exact, and for one token no form is faster
            logits, after = model(self._tokens, rebuild(self._template, self._leaves))
        self._logits: Tensor = logits[:, -1]
        pairs = list(zip(self._leaves, leaves(after), strict=True))
        if any(own.shape != leaf.shape for own, leaf in pairs):
            raise Unrecordable("a state that grows")
        memory = {own.untyped_storage().data_ptr() for own in self._leaves}
        changed = [
            # What is moved from one part of the state to another is read before that is written.
            (own, leaf.clone() if leaf.untyped_storage().data_ptr() in memory else leaf)
            for own, leaf in pairs
            if leaf.data_ptr() != own.data_ptr()
        ]
        for own, leaf in changed:
            own.copy_(leaf)

    def __call__(self, tokens: Tensor) -> Tensor:
        if not self.room:
            raise IndexError("no room for another token")
        self.room -= 1
        record("step", "graph")
        self._tokens[:, 0] = tokens
        self._replay()
        return self._logits

    def reorder(self, rows: Tensor) -> None:
        """Go on in row i from the state that row `rows[i]` has now, for as many rows."""
        for own in self._leaves:
            own.copy_(own[rows])

    def rewind(self) -> None:
        """Have room again for as many tokens as at first."""
        self.room = self._first_room

    def state(self) -> State:
        """The state after the tokens read so far: a copy."""
        return rebuild(self._template, [leaf.clone() for leaf in self._leaves])
