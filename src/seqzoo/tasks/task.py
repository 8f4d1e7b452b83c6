"""What the trainer needs of a task: batches, an objective, metrics, and what can be looked at.

A task owns its objective. The trainer knows none: it hands over a batch and the state that is
carried, and gets a summed loss and the next state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from seqzoo.data.tokenizers import Tokenizer
from seqzoo.state import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# forward(inputs, state, *more) -> (outputs, state): the model, under autocast and whatever wraps it
Forward = Callable[..., tuple[Tensor, State]]


class Batch(Protocol):
    """One micro-batch. A task chooses the class; the trainer reads these attributes only."""

    @property
    def fresh(self) -> bool:
        """Whether to begin from the empty state, else from the state the last batch left."""

    @property
    def n_tokens(self) -> int:
        """Tokens read, padding left out."""

    @property
    def n_targets(self) -> int:
        """Targets in it: what the summed loss is divided by."""

    def to(self, device: torch.device) -> Self:
        """The batch on another device."""


class Metric(NamedTuple):
    """A number that an evaluation gives. The first of a task's metrics chooses the best checkpoint.

    Attributes:
        name: what follows the split: `loss` of `val/loss`.
        higher_is_better: the direction; of a loss, the lower is the better.
        unit: shown behind the number: `%` where the number is a percentage.
        of_tokens: whether it is a mean over tokens, which says nothing about a model with another
            tokenizer.
    """

    name: str
    higher_is_better: bool = False
    unit: str = ""
    of_tokens: bool = False


class Task(Protocol):
    """A task. Its batches are a pure function of (seed, step), so that a run can be resumed
    anywhere.

    A task of which every evaluation takes long may have a method ``shorten() -> bool``: from then
    on the quick ones read a part of the data; false where all of it is little.
    """

    name: str
    note: str  # the data, in a line
    data_sha256: str  # of all of it; a task may have `val_sha256` too, of what evaluations read
    metrics: tuple[Metric, ...]
    quick_is_less: bool  # whether a quick evaluation leaves anything out
    carries: bool  # whether a batch goes on from the state the last one left
    seq_len: int  # tokens a training sequence; the mean, where they differ

    def setup(self, model: Any) -> None:
        """Prepare for a model: whether its state can be carried, and how it reads a batch."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""

    def epochs(self, step: int) -> float:
        """How often `step` batches have read the training data."""

    def objective(
        self, forward: Forward, batch: Any, state: State, *, progress: float
    ) -> tuple[Tensor, State]:
        """The loss summed over the batch's targets, to be differentiated, and the state after it.

        Args:
            progress: the share of the run that is over, 0 to 1.
        """

    def evaluate(self, model: Any, split: str, *, quick: bool) -> dict[str, float]:
        """Metrics on `val` or `test`, named `val/...`; `quick` may leave out what is slow."""

    def facts(self) -> dict[str, str]:
        """What has to be known about the metrics, such as sacreBLEU's signatures."""

    def sample(self, model: Any) -> str:
        """Some output of the model, for people to read."""

    def figures(self, model: Any) -> dict[str, Figure]:
        """Figures of the model, by their tag in TensorBoard."""

    def splits(self) -> list[str]:
        """Which of `val` and `test` there are."""

    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """What the exported model needs, by the name of its file: `tokenizer`, ..."""

    def sizes(self) -> dict[str, Any]:
        """What `build` needs to know of the data: `vocab_size`, ..."""
