"""Translation by any language model: read the source into the state, speak the target.

One sequence a pair, ``source <s> target </s>``; the loss is on what follows ``<s>``. Nothing else
tells the two languages apart, so every family, from the RNN on, takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.data.pairs import EncodedPairs
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.decoding import beam_search, generate
from seqzoo.models.language_model import LanguageModel
from seqzoo.tasks.task import IGNORE, Batch


class Translation:
    """Pairs of sentences, batched with others of about their length up to `batch_tokens` tokens."""

    name = "translation"
    best = "val/loss"
    carries = False
    quick_is_less = True

    def __init__(self, keys: Mapping[str, Any], data: EncodedPairs, *, seed: int) -> None:
        self.data, self.seed = data, seed
        self.tokenizer, self.note, self.data_sha256 = data.tokenizer, data.note, data.sha256
        self.batch_tokens, self.max_len = keys["batch_tokens"], keys["max_len"]
        self.eval_pairs = keys["eval_pairs"]
        self.pad, self.start, self.end = (self.tokenizer.id(t) for t in ("<pad>", "<s>", "</s>"))
        sources, targets = data.train
        self.lengths = np.array(
            [len(s) + len(t) + 1 for s, t in zip(sources, targets, strict=True)]
        )
        self.usable = np.flatnonzero(self.lengths <= self.max_len)
        if dropped := len(self.lengths) - len(self.usable):
            self.note += (
                f"; {dropped:,} pairs longer than task.max_len={self.max_len} tokens are left out"
            )
        self.seq_len = round(self.lengths[self.usable].mean()) if len(self.usable) else 0
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])
        self.steps_per_epoch = len(self._epoch(0))

    def setup(self, model: LanguageModel) -> None:
        """Every pair begins from the empty state, whatever the model."""

    def splits(self) -> list[str]:
        return [split for split in ("val", "test") if len(getattr(self.data, split)[0])]

    # ---- training

    def epochs(self, step: int) -> float:
        return step / self.steps_per_epoch

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        rows = self._epoch(epoch)[index]
        sources, targets = self.data.train
        return self.collate([sources[i] for i in rows], [targets[i] for i in rows])

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, as indices into the training pairs; as many in every epoch.

        Pairs are sorted by length, with ties in an order drawn anew, and cut where a batch is full;
        the batches then come in an order drawn anew.
        """
        if self._plan[0] != epoch:
            draw = np.random.default_rng((self.seed, 3, epoch))
            order = draw.permutation(self.usable)
            order = order[np.argsort(self.lengths[order], kind="stable")]
            batches, begin = [], 0
            for end in range(1, len(order) + 1):
                full = (
                    end == len(order)
                    or (end + 1 - begin) * self.lengths[order[end]] > self.batch_tokens
                )
                if full:
                    batches.append(order[begin:end])
                    begin = end
            self._plan = epoch, [batches[i] for i in draw.permutation(len(batches))]
        return self._plan[1]

    def collate(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
        """Right-padded rows of ``source <s> target </s>`` and, where the target is to be said, what
        comes next."""
        rows = [
            np.concatenate((s, [self.start], t, [self.end]))
            for s, t in zip(sources, targets, strict=True)
        ]
        width = max(map(len, rows))
        tokens = np.full((len(rows), width), self.pad, dtype=np.int64)
        wanted = np.full((len(rows), width), IGNORE, dtype=np.int64)
        for i, (source, row) in enumerate(zip(sources, rows, strict=True)):
            tokens[i, : len(row)] = row
            wanted[i, len(source) + 1 : len(row)] = row[len(source) + 1 :]
        read = sum(map(len, rows)) - len(rows)
        return Batch(torch.from_numpy(tokens[:, :-1]), torch.from_numpy(wanted[:, 1:]), True, read)

    # ---- evaluation

    def evaluate(self, model: LanguageModel, split: str, *, quick: bool) -> dict[str, float | str]:
        """`loss` in nats a target token; exact match in percent, BLEU and chrF of greedy
        translations.

        `quick` translates the first `eval_pairs` pairs only.
        """
        sources, targets = getattr(self.data, split)
        metrics: dict[str, float | str] = {f"{split}/loss": self._loss(model, sources, targets)}
        if quick:
            sources, targets = sources[: self.eval_pairs], targets[: self.eval_pairs]
        hypotheses = translate(model, self.tokenizer, sources, self.max_len)
        references = self.data.references[split][: len(sources)]
        for name, value in score(hypotheses, references).items():
            metrics[f"{split}/{name}"] = value
        return metrics

    @torch.inference_mode()
    def _loss(
        self, model: LanguageModel, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]
    ) -> float:
        device = model.embedding.weight.device
        total, count = 0.0, 0
        lengths = np.array([len(s) + len(t) + 1 for s, t in zip(sources, targets, strict=True)])
        order = np.argsort(lengths, kind="stable")
        if model.max_len is not None:  # what is longer cannot be read
            order = order[lengths[order] <= model.max_len]
        for i in range(0, len(order), 128):
            rows = order[i : i + 128]
            batch = self.collate([sources[r] for r in rows], [targets[r] for r in rows]).to(device)
            logits, _ = model(batch.inputs)
            total += float(
                F.cross_entropy(
                    logits.flatten(0, 1).float(),
                    batch.targets.flatten(),
                    ignore_index=IGNORE,
                    reduction="sum",
                )
            )
            count += int((batch.targets != IGNORE).sum())
        return total / max(1, count)

    def sample(self, model: LanguageModel) -> str:
        sources, targets = self.data.val
        sources, targets = sources[:3], targets[:3]
        lines = zip(
            sources, translate(model, self.tokenizer, sources, self.max_len), targets, strict=True
        )
        decode = self.tokenizer.decode
        return "\n".join(f"{decode(s)}\n  -> {said}\n   = {decode(t)}" for s, said, t in lines)


def translate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    sources: Sequence[np.ndarray],
    max_len: int,
    *,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[str]:
    """Translations of encoded sentences, in their order: greedy, or the best of a beam search. A
    pair ends at `max_len` tokens, a translation at twice its source and 50 more, should it not end
    by itself."""
    start, end = tokenizer.id("<s>"), tokenizer.id("</s>")
    out = [""] * len(sources)
    for rows, prompt in _by_length(sources, start, at_once=max(1, 256 // beams)):
        prompt = prompt.to(model.embedding.weight.device)
        limit = max(1, min(max_len - prompt.shape[1], 2 * prompt.shape[1] + 50))
        if beams > 1:
            found = beam_search(
                model,
                prompt,
                beams=beams,
                max_tokens=limit,
                stop=end,
                length_penalty=length_penalty,
            )
            for row, hypotheses in zip(rows, found, strict=True):
                out[row] = tokenizer.decode(hypotheses[0].tokens)
            continue
        tokens = generate(model, prompt, max_tokens=limit, temperature=0, stop=end)
        columns = torch.stack(list(tokens), 1).cpu().numpy()  # (B, steps)
        for row, ids in zip(rows, columns, strict=True):
            out[row] = tokenizer.decode(ids)
    return out


def _by_length(
    sources: Sequence[np.ndarray], start: int, at_once: int = 256
) -> Iterator[tuple[list[int], Tensor]]:
    """Prompts ``source <s>`` in groups of one length: no row is padded, so every row's state is its
    own."""
    groups: dict[int, list[int]] = {}
    for i, source in enumerate(sources):
        groups.setdefault(len(source), []).append(i)
    for rows in groups.values():
        for i in range(0, len(rows), at_once):
            part = rows[i : i + at_once]
            ids = np.stack([np.append(sources[r], start) for r in part]).astype(np.int64)
            yield part, torch.from_numpy(ids)


def score(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Exact match in percent, and sacreBLEU's BLEU and chrF with their signatures."""
    from sacrebleu.metrics import BLEU, CHRF

    bleu, chrf = BLEU(), CHRF()
    same = sum(h == r for h, r in zip(hypotheses, references, strict=True))
    scores: dict[str, float | str] = {
        "exact": 100 * same / max(1, len(references)),
        "bleu": bleu.corpus_score(list(hypotheses), [list(references)]).score,
        "chrf": chrf.corpus_score(list(hypotheses), [list(references)]).score,
    }
    return {
        **scores,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }
