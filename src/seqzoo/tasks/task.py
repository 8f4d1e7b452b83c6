"""What the trainer asks of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from seqzoo.data.tokenizers import Tokenizer
from seqzoo.models.language_model import LanguageModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORE = -100  # a target there is nothing to learn from


class Batch(NamedTuple):
    """One micro-batch of next-token prediction."""

    inputs: Tensor  # (B, T) tokens
    targets: Tensor  # (B, T) tokens; -100 where there is nothing to learn
    fresh: bool  # whether to begin from the empty state, else from the state the last batch left
    n_tokens: int  # read, padding left out
    source: tuple[Any, ...] = ()  # what an encoder reads first: tokens (B, S), and B lengths

    def to(self, device: torch.device) -> Batch:
        source = tuple(x.to(device) if isinstance(x, Tensor) else x for x in self.source)
        inputs, targets = self.inputs.to(device), self.targets.to(device)
        return self._replace(inputs=inputs, targets=targets, source=source)


class Task(Protocol):
    """A task. Its batches are a pure function of (seed, step), so that a run can be resumed
    anywhere."""

    name: str
    tokenizer: Tokenizer
    source_tokenizer: Tokenizer  # of what an encoder reads; the same, unless the task has two
    note: str  # what is read, in a line
    data_sha256: str
    carries: bool  # whether a batch goes on from the state the last one left
    best: str  # the metric whose least value chooses the best checkpoint
    quick_is_less: bool  # whether a quick evaluation leaves anything out
    seq_len: int  # tokens a training sequence; the mean, where they differ

    def setup(self, model: LanguageModel) -> None:
        """See which model it is to be: whether its state can be carried."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""

    def epochs(self, step: int) -> float:
        """How often `step` batches have read the training data."""

    def evaluate(self, model: LanguageModel, split: str, *, quick: bool) -> dict[str, float | str]:
        """Metrics on `val` or `test`, named `val/...`; `quick` may leave out what is slow."""

    def sample(self, model: LanguageModel) -> str:
        """Something the model writes now, to be read by a person."""

    def figures(self, model: LanguageModel) -> dict[str, Figure]:
        """What can be seen of the model now, by the tag it has in TensorBoard."""

    def splits(self) -> list[str]:
        """Which of `val` and `test` there are."""
