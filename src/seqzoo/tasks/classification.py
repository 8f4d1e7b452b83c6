"""Classification: the label of a whole text, by any model with pooled outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Smoothing
from seqzoo.data.labelled import EncodedLabelled, Examples
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.models.classifier import Classifier
from seqzoo.models.language_model import evaluating
from seqzoo.ops.tensors import to_device
from seqzoo.report.figures import heat_map, new_figure, style
from seqzoo.state import State
from seqzoo.tasks.batching import Epochs, by_length, lengths, padded
from seqzoo.tasks.task import Forward, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_EVAL_TOKENS = 16_384  # tokens an evaluation reads at once, at least
SHOWN_TEXTS = 5  # validation texts in samples
SHOWN_CHARS = 100  # of each


class LabelledBatch(NamedTuple):
    """Right-padded texts and their classes."""

    inputs: Tensor  # (B, T) tokens
    targets: Tensor  # (B,) classes
    lengths: tuple[int, ...]  # B tokens without padding
    fresh: bool = True

    @property
    def n_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def n_targets(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> LabelledBatch:
        inputs, targets = to_device(self.inputs, device), to_device(self.targets, device)
        return self._replace(inputs=inputs, targets=targets)


class Classification:
    """Labelled texts, batched with others of about their length up to `batch_tokens` tokens.

    Args:
        eval_texts: the most texts that a quick evaluation reads.
        label_smoothing: share of each target that is spread over all classes.
    """

    name = "classification"
    metrics = (
        Metric("accuracy", higher_is_better=True, unit="%"),
        Metric("macro_f1", higher_is_better=True, unit="%"),
        Metric("loss", unit="nats"),
    )
    carries = False
    quick_is_less = True

    @checked()
    def __init__(
        self,
        data: EncodedLabelled,
        *,
        seed: int,
        batch_tokens: Count,
        eval_texts: Count,
        label_smoothing: Smoothing,
    ) -> None:
        self.data, self.seed = data, seed
        self.tokenizer, self.labels = data.tokenizer, data.labels
        self.note, self.data_sha256 = data.note, data.sha256
        self.batch_tokens, self.eval_texts = batch_tokens, eval_texts
        self.label_smoothing = label_smoothing
        self.pad = self.tokenizer.id("<pad>")
        self._lengths = lengths(data.train.texts)
        self.seq_len = round(float(self._lengths.mean())) if len(self._lengths) else 0
        self.plan = Epochs(
            len(self._lengths),
            lambda order: _batches(order, self._lengths, batch_tokens),
            (seed, 4),
        )

    def setup(self, model: Classifier) -> None:
        """Batches are the same for every model."""

    def splits(self) -> list[str]:
        return [split for split in ("val", "test") if getattr(self.data, split).texts]

    def tokenizers(self) -> dict[str, Tokenizer]:
        return {"tokenizer": self.tokenizer, "labels": self.labels}

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size, "n_classes": self.labels.vocab_size}

    # ---- training

    def epochs(self, step: int) -> float:
        return step / self.plan.n_batches

    def batch(self, step: int) -> LabelledBatch:
        rows = self.plan.rows(step)
        texts = [self.data.train.texts[row] for row in rows]
        classes = torch.from_numpy(self.data.train.classes[rows])
        return LabelledBatch(padded(texts, self.pad), classes, tuple(map(len, texts)))

    def objective(
        self, forward: Forward, batch: LabelledBatch, state: State, *, progress: float
    ) -> tuple[Tensor, State]:
        logits, state = forward(batch.inputs, state, batch.lengths)
        loss = F.cross_entropy(
            logits.float(), batch.targets, reduction="sum", label_smoothing=self.label_smoothing
        )
        return loss, state

    # ---- evaluation

    def evaluate(self, model: Classifier, split: str, *, quick: bool) -> dict[str, float]:
        """`accuracy` and `macro_f1` in percent, `loss` in nats a text.

        The macro F1 is the mean over the classes, each of the same weight. `quick` reads at most
        `eval_texts` texts, evenly spread over the split.
        """
        part = self._spread(getattr(self.data, split), quick)
        logits = self._logits(model, part)
        counts = _count(part.classes, logits.argmax(-1).numpy(), self.labels.vocab_size)
        loss = F.cross_entropy(logits, torch.from_numpy(part.classes))
        return {
            f"{split}/accuracy": 100 * float(counts.trace() / counts.sum()),
            f"{split}/macro_f1": 100 * macro_f1(counts),
            f"{split}/loss": float(loss),
        }

    def facts(self) -> dict[str, str]:
        return {"classes": ", ".join(self._names())}

    def confusion(self, model: Classifier, split: str, *, quick: bool = False) -> np.ndarray:
        """Texts of each true class (rows) that were given each class (columns): (C, C)."""
        part = self._spread(getattr(self.data, split), quick)
        predicted = self._logits(model, part).argmax(-1).numpy()
        return _count(part.classes, predicted, self.labels.vocab_size)

    def sample(self, model: Classifier) -> str:
        """Validation texts with their predicted and their true label."""
        part = _spread(self.data.val, SHOWN_TEXTS)
        texts = [self.tokenizer.decode(ids) for ids in part.texts]
        shown = [text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..." for text in texts]
        best = _most_probable(self._logits(model, part), self.labels)
        found = zip(shown, best, part.classes.tolist(), strict=True)
        return "\n".join(
            f"{text}\n  -> {label} ({share:.0%})\n   = {self.labels.piece(true)}"
            for text, (label, share), true in found
        )

    def figures(self, model: Classifier) -> dict[str, Figure]:
        """The confusion matrix of the validation texts, or of `eval_texts` of them."""
        return {
            "confusion": draw_confusion(self.confusion(model, "val", quick=True), self._names())
        }

    def _logits(self, model: Classifier, part: Examples) -> Tensor:
        max_tokens = max(MIN_EVAL_TOKENS, self.batch_tokens)
        return class_logits(model, part.texts, self.pad, max_tokens)

    def _names(self) -> list[str]:
        return [self.labels.piece(index) for index in range(self.labels.vocab_size)]

    def _spread(self, part: Examples, quick: bool) -> Examples:
        return _spread(part, self.eval_texts) if quick else part


def predict(
    model: Classifier,
    tokenizer: Tokenizer,
    labels: Tokenizer,
    texts: Sequence[str],
    *,
    max_len: int,
) -> list[tuple[str, float]]:
    """The most probable label of each text, and its probability. Of a text longer than `max_len`
    tokens the beginning is read. The label of an empty text is empty, with probability 0."""
    ids = [tokenizer.encode(text)[:max_len] for text in texts]
    logits = class_logits(model, [one for one in ids if len(one)], tokenizer.id("<pad>"))
    best = iter(_most_probable(logits, labels))
    return [next(best) if len(one) else ("", 0.0) for one in ids]


@torch.inference_mode()
def class_logits(
    model: Classifier, texts: Sequence[np.ndarray], pad: int, max_tokens: int = MIN_EVAL_TOKENS
) -> Tensor:
    """Logits (N, C) of encoded texts in their order, float32 and on the CPU.

    Args:
        pad: the token to fill rows up with.
        max_tokens: read at once, padding included.
    """
    device = model.embedding.weight.device
    out = torch.zeros(len(texts), model.head.out_features)
    with evaluating(model):
        for rows in _batches(np.arange(len(texts)), lengths(texts), max_tokens):
            chosen = [texts[row] for row in rows]
            logits, _ = model(padded(chosen, pad).to(device), None, list(map(len, chosen)))
            out[torch.from_numpy(rows)] = logits.float().cpu()
    return out


def _most_probable(logits: Tensor, labels: Tokenizer) -> list[tuple[str, float]]:
    shares, classes = logits.softmax(-1).max(-1)
    names = map(labels.piece, classes.tolist())
    return list(zip(names, shares.tolist(), strict=True))


def _batches(order: np.ndarray, sizes: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    return by_length(order, (sizes,), sizes[:, None], max_tokens=max_tokens)


def macro_f1(counts: np.ndarray) -> float:
    """The mean over the classes of 2 TP / (2 TP + FP + FN), from a confusion matrix (C, C). Classes
    that are neither there nor predicted are left out."""
    found = counts.sum(0) + counts.sum(1)
    present = found > 0
    return float((2 * counts.diagonal()[present] / found[present]).mean())


@style()
def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """A confusion matrix: true classes down the side, predicted ones along the top; black is every
    text of a true class."""
    n = len(names)
    column = 0.75 if n <= 4 else 0.45  # inches; names stand upright above narrow columns
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure = new_figure(column * n + 2.0, max(2.8, 0.4 * n + 1.4))
    axes: Any = figure.subplots()
    greys = {"cmap": "Greys", "vmin": 0, "vmax": 1}
    heat_map(axes, shares, names, names, "share of the true class", **greys)
    axes.set_ylabel("true class")
    axes.set_xlabel("predicted class")
    axes.xaxis.set_label_position("top")
    for true, predicted in np.ndindex(*counts.shape) if n <= 20 else ():
        colour = "white" if shares[true, predicted] > 0.5 else "black"
        text = f"{counts[true, predicted]}"
        axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=7)
    return figure


def _spread(part: Examples, most: int) -> Examples:
    """At most that many examples, evenly spread over a part."""
    rows = np.unique(np.linspace(0, len(part.texts) - 1, min(most, len(part.texts))).round())
    chosen = rows.astype(int)
    return Examples([part.texts[row] for row in chosen], part.classes[chosen])


def _count(true: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """The confusion matrix (C, C)."""
    flat = np.bincount(true * n_classes + predicted, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes)
