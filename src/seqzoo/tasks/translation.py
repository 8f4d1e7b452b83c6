"""Translation by any model.

A language model (architecture=decoder_only) reads a pair as one sequence, ``source <s> target
</s>``. With an encoder and a decoder, the encoder reads ``source </s>`` and the decoder ``<s>
target </s>``. The loss is on the tokens after ``<s>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from seqzoo.config.combinations import bpe_dropout_has_words
from seqzoo.config.schema import checked
from seqzoo.config.values import Amount, Count, Dropout, LongPairs, Share, Smoothing, Text
from seqzoo.data.bpe_dropout import BpeDropout
from seqzoo.data.pairs import EncodedPairs
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.state import State
from seqzoo.tasks import batching, scores
from seqzoo.tasks.batching import Epochs, lengths, padded
from seqzoo.tasks.next_token import (
    IGNORE,
    TokenBatch,
    divergence,
    next_token_loss,
    replace_by_predictions,
)
from seqzoo.tasks.task import Forward, Metric
from seqzoo.tasks.translate import Translator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_EVAL_TOKENS = 4096  # tokens an evaluation reads at once, at least
SHOWN_PAIRS = 3  # validation pairs in samples and attention maps


class Translation:
    """Pairs of sentences, batched with others of about their length up to `batch_tokens` tokens."""

    name = "translation"
    metrics = (
        Metric("loss", unit="nats", of_tokens=True),
        Metric("token_accuracy", higher_is_better=True, unit="%", of_tokens=True),
        Metric("exact", higher_is_better=True, unit="%"),
        Metric("bleu", higher_is_better=True),
        Metric("chrf", higher_is_better=True),
        Metric("bleu_tokenised", higher_is_better=True),
    )
    carries = False
    quick_is_less = True

    @checked(bpe_dropout_has_words)
    def __init__(
        self,
        data: EncodedPairs,
        *,
        seed: int,
        target_lang: Text,
        batch_tokens: Count,
        max_len: Count,
        long_pairs: LongPairs,
        eval_pairs: Count,
        beam: Count,
        length_penalty: Amount,
        label_smoothing: Smoothing,
        scheduled_sampling: Share,
        r_drop: Amount,
        bpe_dropout: Dropout,
    ) -> None:
        self.data, self.seed = data, seed
        self.tokenizer, self.source_tokenizer = data.tokenizer, data.source_tokenizer
        self.note, self.data_sha256 = data.note, data.sha256
        self.batch_tokens, self.target_lang = batch_tokens, target_lang
        self.eval_pairs, self.beam, self.length_penalty = eval_pairs, beam, length_penalty
        self.label_smoothing, self.scheduled_sampling = label_smoothing, scheduled_sampling
        self.r_drop = r_drop
        self.pad, self.start = (self.tokenizer.id(token) for token in ("<pad>", "<s>"))
        self.max_len = max_len
        self.train = self._fitting(max_len, long_pairs)
        self._cut_anew = []
        if bpe_dropout:
            sides = zip((self.source_tokenizer, self.tokenizer), self.train, strict=True)
            self._cut_anew = [BpeDropout(*side, bpe_dropout, seed) for side in sides]
        self._lengths = lengths(self.train[0]), lengths(self.train[1])
        whole = self._lengths[0] + self._lengths[1]
        self.seq_len = round(float(whole.mean())) if len(whole) else 0
        self.setup(LanguageModel)

    def _fitting(self, max_len: int, long_pairs: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Sources, and targets with their end; pairs longer than `max_len` cut or left out."""
        sources, targets = (
            list(self.data.train.source),
            _ended(self.tokenizer, self.data.train.target),
        )
        long = np.flatnonzero(lengths(sources) + lengths(targets) > max_len)
        if long_pairs == "cut":
            half = max(1, max_len // 2)  # a target that was cut has no end
            for row in long:
                sources[row], targets[row] = sources[row][:half], targets[row][:half]
            what = f"are cut, both sides to {half}"
        else:
            kept = np.setdiff1d(np.arange(len(sources)), long)
            sources, targets = [sources[row] for row in kept], [targets[row] for row in kept]
            what = "are left out"
        if len(long):
            self.note += f"; {len(long):,} pairs longer than task.max_len={max_len} tokens {what}"
        return sources, targets

    def setup(self, model: LanguageModel | type[LanguageModel]) -> None:
        """Batches as a model can read them; until it is known, as a language model can.

        Raises:
            UserError: `bpe_dropout` for a model whose sources must have one length.
        """
        if self._cut_anew and model.needs_equal_lengths:
            raise UserError(
                "task.bpe_dropout cuts sources of one length into different numbers of tokens, and "
                "this model reads those of one length together: give no task.bpe_dropout, or "
                "architecture.bridge=attention"
            )
        self._model = model
        self.plan = Epochs(
            len(self.train[0]),
            lambda order: _batches(model, order, *self._lengths, self.batch_tokens),
            (self.seed, 3),
        )

    def splits(self) -> list[str]:
        return ["val", "test"] if len(self.data.test.source) else ["val"]

    def tokenizers(self) -> dict[str, Tokenizer]:
        if self.source_tokenizer is self.tokenizer:
            return {"tokenizer": self.tokenizer}
        return {"tokenizer": self.tokenizer, "source_tokenizer": self.source_tokenizer}

    def sizes(self) -> dict[str, Any]:
        names = {"tokenizer": "vocab_size", "source_tokenizer": "source_vocab_size"}
        return {names[file]: one.vocab_size for file, one in self.tokenizers().items()}

    # ---- training

    def epochs(self, step: int) -> float:
        return step / self.plan.n_batches

    def batch(self, step: int) -> TokenBatch:
        rows = self.plan.rows(step)
        sources, targets = ([side[row] for row in rows] for side in self.train)
        if self._cut_anew:
            self._cut(rows, sources, targets, np.random.default_rng((self.seed, 4, step)))
        return self.collate(sources, targets, encodes=self._model.reads_source)

    def _cut(
        self,
        rows: np.ndarray,
        sources: list[np.ndarray],
        targets: list[np.ndarray],
        draw: np.random.Generator,
    ) -> None:
        """Put other tokens in place of those of a batch. A pair that would be longer than `max_len`
        is left as it is."""
        for i, row in enumerate(rows.tolist()):
            source, target = (side.read(row, draw) for side in self._cut_anew)
            if len(source) + len(target) + 1 <= self.max_len:
                sources[i], targets[i] = source, np.append(target, targets[i][-1])

    def objective(
        self, forward: Forward, batch: TokenBatch, state: State, *, progress: float
    ) -> tuple[Tensor, State]:
        batch = replace_by_predictions(forward, batch, state, self.scheduled_sampling * progress)
        logits, state = forward(batch.inputs, state, *batch.source)
        loss = next_token_loss(logits, batch.targets, self.label_smoothing)
        if self.r_drop:
            loss = self._agreeing(loss, logits, forward, batch)
        return loss, state

    def _agreeing(
        self, loss: Tensor, logits: Tensor, forward: Forward, batch: TokenBatch
    ) -> Tensor:
        """R-Drop (Liang et al. 2021, arXiv 2106.14448): the mean loss of two passes with different
        dropout, and `r_drop` times half of the divergence of their predictions."""
        again, _ = forward(batch.inputs, None, *batch.source)
        both = loss + next_token_loss(again, batch.targets, self.label_smoothing)
        apart = divergence(logits, again, batch.targets)
        return 0.5 * (both + self.r_drop * apart)

    def collate(
        self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, encodes: bool
    ) -> TokenBatch:
        """Right-padded rows of ``source <s> target``, or of ``<s> target`` with the sources beside
        them. Only tokens after ``<s>`` are targets. The targets given have their end."""
        prefixes = [source[:0] if encodes else source for source in sources]
        pairs = zip(prefixes, targets, strict=True)
        rows = [np.concatenate((prefix, [self.start], target)) for prefix, target in pairs]
        tokens, following = padded(rows, self.pad), padded(rows, IGNORE)
        for i, prefix in enumerate(prefixes):
            following[i, : len(prefix) + 1] = IGNORE
        n_tokens = sum(map(len, rows)) - len(rows)
        source: tuple[Any, ...] = ()
        if encodes:
            ended = _ended(self.source_tokenizer, sources)
            source = (padded(ended, self.pad), lengths(ended).tolist())
            n_tokens += sum(source[1])
        n_targets = sum(map(len, targets))
        return TokenBatch(tokens[:, :-1], following[:, 1:], True, n_tokens, n_targets, source)

    # ---- evaluation

    def evaluate(self, model: LanguageModel, split: str, *, quick: bool) -> dict[str, float]:
        """`loss` in nats a target token; `token_accuracy` and `exact` match in percent; BLEU and
        chrF of translations.

        `quick` translates the first `eval_pairs` pairs greedily. Otherwise all pairs are translated
        by `task.beam`, and scored by the length of the source too.
        """
        sources, targets = getattr(self.data, split)
        metrics = self._teacher_forced(model, sources, targets)
        if quick:
            sources = sources[: self.eval_pairs]
        beams = 1 if quick else self.beam
        outputs = self._translator(model).translate(
            sources, beams=beams, length_penalty=self.length_penalty
        )
        references = self.data.references[split][: len(sources)]
        metrics |= scores.score(outputs, references, self.target_lang)
        if not quick:
            texts = [self.source_tokenizer.decode(source) for source in sources]
            metrics |= scores.by_length(outputs, references, texts)
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def _translator(self, model: LanguageModel) -> Translator:
        return Translator(model, self.tokenizer, self.source_tokenizer)

    @torch.inference_mode()
    def _teacher_forced(
        self, model: LanguageModel, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """`loss` and `token_accuracy` where every token is predicted after the true ones."""
        device = model.embedding.weight.device
        total, right, count = 0.0, 0, 0
        targets = _ended(self.tokenizer, targets)
        sizes = lengths(sources), lengths(targets)
        left = [model.positions_left(n + model.reads_source) for n in sizes[0]]
        fitting = np.flatnonzero(sizes[1] <= left)
        max_tokens = max(MIN_EVAL_TOKENS, self.batch_tokens)
        for rows in _batches(model, fitting, *sizes, max_tokens):
            batch = self.collate(
                [sources[r] for r in rows], [targets[r] for r in rows], encodes=model.reads_source
            ).to(device)
            logits, _ = model(batch.inputs, None, *batch.source)
            total += float(next_token_loss(logits, batch.targets))
            right += int((logits.float().argmax(-1) == batch.targets).sum())
            count += batch.n_targets
        return {"loss": total / max(1, count), "token_accuracy": 100 * right / max(1, count)}

    def facts(self) -> dict[str, str]:
        return scores.signatures()

    def sample(self, model: LanguageModel) -> str:
        sources, targets = (side[:SHOWN_PAIRS] for side in self.data.val)
        outputs = self._translator(model).translate(sources)
        source_text, text = self.source_tokenizer.decode, self.tokenizer.decode
        return "\n".join(
            f"{source_text(source)}\n  -> {output}\n   = {text(target)}"
            for source, output, target in zip(sources, outputs, targets, strict=True)
        )

    def figures(self, model: LanguageModel) -> dict[str, Figure]:
        """Attention maps of the first validation pairs: which source tokens each target token
        attends to."""
        from seqzoo.tasks.alignment import align, draw

        drawn = {}
        sources, targets = (side[:SHOWN_PAIRS] for side in self.data.val)
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            alignment = align(model, self.tokenizer, self.source_tokenizer, source, target)
            if alignment is not None:
                drawn[f"attention/{i}"] = draw(alignment, layers=False)
        return drawn


def _batches(
    model: LanguageModel | type[LanguageModel],
    order: np.ndarray,
    sources: np.ndarray,
    targets: np.ndarray,
    max_tokens: int,
) -> Iterator[np.ndarray]:
    """Batches of pairs given by their lengths.

    An encoder reads rows of one length together, so with one the source's length comes first.
    """
    if not model.reads_source:
        whole = sources + targets
        return batching.by_length(order, (whole,), whole[:, None], max_tokens=max_tokens)
    return batching.by_length(
        order,
        (targets, sources),
        np.stack((sources + 1, targets), 1),
        max_tokens=max_tokens,
        apart=sources if model.needs_equal_lengths else None,
    )


def _ended(tokenizer: Tokenizer, sentences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sentences with their end."""
    end = tokenizer.id("</s>")
    return [np.append(ids, end) for ids in sentences]
