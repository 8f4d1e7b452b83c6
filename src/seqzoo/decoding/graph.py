"""One decoding step of a model as a CUDA graph: every kernel of it is launched by one call."""

from __future__ import annotations

from collections.abc import Callable

import torch

from seqzoo import ops
from seqzoo.decoding.replayed import ReplayedStep, before_writing
from seqzoo.models.language_model import TokenModel
from seqzoo.ops.native.program import Unrecordable
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


class GraphStep(ReplayedStep):
    """By a CUDA graph, for models whose state has the same shape after every token.

    Args:
        state: before the first token; it keeps its values.
        room: tokens that can be read.
        capture: what runs a function again without Python.

    Raises:
        Unrecordable: a state that grows, or a step that cannot be captured.
    """

    kind = "graph"

    def __init__(
        self,
        model: TokenModel,
        state: State,
        rows: int,
        room: int,
        capture: Capture = cuda_graph,
    ) -> None:
        super().__init__(state, rows, room)
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
        self._logits = logits[:, -1]
        moved = before_writing(self._leaves, leaves(after))
        for own, leaf in zip(self._leaves, moved, strict=True):
            if own.shape != leaf.shape:
                raise Unrecordable("a state that grows")
            if leaf.data_ptr() != own.data_ptr():
                own.copy_(leaf)
