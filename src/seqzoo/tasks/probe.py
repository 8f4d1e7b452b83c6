"""Every probe as a task: the loss and the accuracy of the tokens that are asked for, at the trained
sizes and at others.

`val` are examples of the largest trained size, `test` those of the sizes that the keys of the task
name for it: longer ones, or with fewer or more pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.probes.probe import Examples, Probe, Sizes
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel, evaluating
from seqzoo.report.figures import new_figure, style
from seqzoo.state import State
from seqzoo.tasks.next_token import IGNORE, TokenBatch, next_token_loss
from seqzoo.tasks.task import Forward, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 100  # examples an evaluation makes at once
EVAL_LOGITS = 2**24  # logits it computes at once, at most
QUICK = 4  # an evaluation on the way reads one example of so many
SHOWN_EXAMPLES, SHOWN_TOKENS = 3, 24  # in samples


class Score(NamedTuple):
    """Of examples of one size: shares of tokens and of whole examples that are right, and nats a
    token."""

    accuracy: float
    exact: float
    loss: float


class ProbeTask:
    """A probe: batches of new examples, of all the trained sizes.

    A model reads from left to right, so what fills up the shorter rows changes nothing before it.

    Args:
        examples: of a training set of limited size, which is read again and again; None: every
            batch is new.
        eval_examples: of each size that an evaluation reads; on the way a quarter of them.
    """

    metrics = (
        Metric("accuracy", higher_is_better=True, unit="%"),
        Metric("exact", higher_is_better=True, unit="%"),
        Metric("scaled_accuracy", higher_is_better=True, unit="%"),
        Metric("loss", unit="nats"),
    )
    carries = False
    quick_is_less = True

    @checked()
    def __init__(
        self,
        data: Probe,
        *,
        seed: int,
        batch_size: Count,
        examples: Count | None,
        eval_examples: Count,
    ) -> None:
        self.data, self.seed = data, seed
        self.name, self.note = data.name, data.note
        self.data_sha256, self.val_sha256 = data.sha256, data.val_sha256
        self.batch_size, self.eval_examples = batch_size, eval_examples
        if examples is not None and examples % batch_size:
            raise UserError(
                f"task.examples={examples}: give a multiple of task.batch_size={batch_size}, or "
                "null for new ones in every batch"
            )
        self.n_batches = None if examples is None else examples // batch_size
        ends = [data.n_tokens(sizes) for sizes in (data.train[0], data.train[-1])]
        self.seq_len = round(sum(ends) / 2)
        self.tokenizer = Tokenizer.of_labels(list(data.symbols))

    def setup(self, model: LanguageModel) -> None:
        """Batches are the same for every model."""

    def splits(self) -> list[str]:
        return [split for split in ("val", "test") if self.data.points(split)]

    def tokenizers(self) -> dict[str, Tokenizer]:
        return {"tokenizer": self.tokenizer}

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size}

    # ---- training

    def epochs(self, step: int) -> float:
        """0 where every batch is new."""
        return step / self.n_batches if self.n_batches else 0.0

    def batch(self, step: int) -> TokenBatch:
        return _batch(self.data.training(self.seed, self._number(step), self.batch_size))

    def objective(
        self, forward: Forward, batch: TokenBatch, state: State, *, progress: float
    ) -> tuple[Tensor, State]:
        logits, state = forward(batch.inputs, state)
        return next_token_loss(logits, batch.targets), state

    def _number(self, step: int) -> int:
        """Which batch a step reads: of a limited set all in each epoch, in an order drawn anew."""
        if self.n_batches is None:
            return step
        epoch, place = divmod(step, self.n_batches)
        return int(np.random.default_rng((4, self.seed, epoch)).permutation(self.n_batches)[place])

    # ---- evaluation

    def evaluate(self, model: LanguageModel, split: str, *, quick: bool) -> dict[str, float]:
        """`accuracy` and `exact` in percent and `loss` in nats a token, the means over the sizes;
        where there is a level of chance, `scaled_accuracy`: 0 is chance, 100 is all right.

        Further `accuracy_by_length/00064` and `accuracy_by_pairs/00004`, of the sizes that differ
        from the trained one in that alone.
        """
        points, n = self.data.points(split), self._n_examples(quick)
        scores = [self._score(model, split, sizes, n) for sizes in points]
        mean = Score(*(sum(each) / len(scores) for each in zip(*scores, strict=True)))
        found = {f"{split}/accuracy": 100 * mean.accuracy, f"{split}/exact": 100 * mean.exact}
        if (chance := self.data.chance) is not None:
            scaled = (mean.accuracy - chance) / (1 - chance)
            found[f"{split}/scaled_accuracy"] = 100 * scaled
        found[f"{split}/loss"] = mean.loss
        for axis in self._axes():
            for sizes, score in zip(points, scores, strict=True):
                if self._differs_in(sizes) <= {axis}:
                    name = f"{split}/accuracy_by_{axis}/{sizes[axis]:05}"
                    found[name] = 100 * score.accuracy
        return found

    def facts(self) -> dict[str, str]:
        return {}

    def sample(self, model: LanguageModel) -> str:
        """Validation examples with what the model answers and what is right."""
        examples = self.data.held_out("val", self.data.train[-1], 0, SHOWN_EXAMPLES)
        batch = _batch(examples)
        given = self._logits(model, batch.inputs).argmax(-1).cpu()
        rows = []
        for read, answer, right in zip(batch.inputs, given, batch.targets, strict=True):
            asked = right != IGNORE
            rows += [self._text(read), f"  -> {self._text(answer[asked])}"]
            rows += [f"   = {self._text(right[asked])}"]
        return "\n".join(rows)

    @style()
    def figures(self, model: LanguageModel) -> dict[str, Figure]:
        """Accuracy against length, and against the number of pairs where it varies too."""
        axes = self._axes() or ["length"]
        whole = new_figure(4.4 * len(axes), 3.4)
        for panel, axis in zip(whole.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
            curve = {}
            for split in self.splits():
                for sizes in self.data.points(split):
                    if self._differs_in(sizes) <= {axis}:
                        score = self._score(model, split, sizes, self._n_examples(quick=True))
                        curve[sizes[axis]] = 100 * score.accuracy
            places = sorted(curve)
            panel.plot(places, [curve[place] for place in places], marker="o")
            panel.axvspan(0, self.data.train[-1][axis], color="0.92", zorder=0, label="trained")
            if self.data.chance is not None:
                panel.axhline(100 * self.data.chance, color="0.5", ls=":", label="chance")
            panel.set(xlabel=axis, ylabel="accuracy, %", ylim=(0, 103), xlim=(0, None))
            panel.legend(loc="lower left")
        return {"accuracy": whole}

    def _n_examples(self, quick: bool) -> int:
        return math.ceil(self.eval_examples / QUICK) if quick else self.eval_examples

    def _axes(self) -> list[str]:
        """The sizes that are not the same in all that is measured."""
        return [axis for axis in self.data.train[-1] if self._varies(axis)]

    def _varies(self, axis: str) -> bool:
        return any(axis in self._differs_in(sizes) for sizes in self.data.test)

    def _differs_in(self, sizes: Sizes) -> set[str]:
        """The axes on which a size differs from the largest trained one."""
        trained = self.data.train[-1]
        return {axis for axis, value in sizes.items() if value != trained[axis]}

    def _score(self, model: LanguageModel, split: str, sizes: Sizes, n: int) -> Score:
        """The score of the first n examples of a size."""
        wrong = exact = targets = 0
        loss = 0.0
        for number in range(math.ceil(n / ROWS)):
            made = self.data.held_out(split, sizes, number, ROWS)
            left = n - number * ROWS
            batch = _batch(Examples(made.inputs[:left], made.targets[:left]))
            rows = max(1, EVAL_LOGITS // (batch.inputs.shape[1] * self.tokenizer.vocab_size))
            parts = (torch.split(part, rows) for part in (batch.inputs, batch.targets))
            for inputs, wanted in zip(*parts, strict=True):
                logits = self._logits(model, inputs)
                wanted = wanted.to(logits.device)
                missed = (logits.argmax(-1) != wanted) & (wanted != IGNORE)
                wrong += int(missed.sum())
                exact += int((~missed.any(1)).sum())
                loss += float(next_token_loss(logits, wanted))
            targets += batch.n_targets
        return Score(1 - wrong / targets, exact / n, loss / targets)

    @torch.inference_mode()
    def _logits(self, model: LanguageModel, inputs: Tensor) -> Tensor:
        with evaluating(model):
            logits: Tensor = model(inputs.to(model.embedding.weight.device))[0]
        return logits

    def _text(self, tokens: Tensor) -> str:
        """Tokens as symbols; of many, the first and the last ones."""
        pieces = [self.tokenizer.piece(int(token)) for token in tokens]
        if len(pieces) > SHOWN_TOKENS:
            half = SHOWN_TOKENS // 2
            pieces = [*pieces[:half], "...", *pieces[-half:]]
        return " ".join(pieces)


def _batch(examples: Examples) -> TokenBatch:
    inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
    n_targets = int((examples.targets != IGNORE).sum())
    n_tokens = inputs.numel() - examples.n_padding
    return TokenBatch(inputs, targets, True, n_tokens=n_tokens, n_targets=n_targets)
