"""Translation by any model: a source is read, then its target is said.

With a language model (head=decoder_only) a pair is one sequence, ``source <s> target </s>``, and
nothing else tells the two languages apart. With an encoder and a decoder the one reads ``source
</s>``, the other ``<s> target </s>``. The loss is on what follows ``<s>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.data.pairs import EncodedPairs
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.decoding import Hypothesis, beam_search, evaluating, generate
from seqzoo.models.language_model import LanguageModel
from seqzoo.state import State
from seqzoo.tasks.task import IGNORE, Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = (5, 10, 15, 20, 30)  # of a source, up to which scores are told together
LETTERS = (10, 20, 30, 40)  # the same, of sources that are single words


class Translation:
    """Pairs of sentences, batched with others of about their length up to `batch_tokens` tokens."""

    name = "translation"
    best = "val/loss"
    carries = False
    quick_is_less = True

    def __init__(self, keys: Mapping[str, Any], data: EncodedPairs, *, seed: int) -> None:
        self.data, self.seed = data, seed
        self.tokenizer, self.source_tokenizer = data.tokenizer, data.source_tokenizer
        self.note, self.data_sha256 = data.note, data.sha256
        self.batch_tokens, self.target_lang = keys["batch_tokens"], keys["target_lang"]
        self.eval_pairs, self.search = keys["eval_pairs"], keys["beam"]
        self.length_penalty = keys["length_penalty"]
        self.pad, self.start, self.end = (self.tokenizer.id(t) for t in ("<pad>", "<s>", "</s>"))
        max_len = keys["max_len"]
        sources, targets = list(data.train.source), _ended(self.tokenizer, data.train.target)
        long = np.flatnonzero(_lengths(sources) + _lengths(targets) > max_len)
        if keys["long_pairs"] == "cut":
            half = max(1, max_len // 2)  # a target that was cut has not ended
            for row in long:
                sources[row], targets[row] = sources[row][:half], targets[row][:half]
            what = f"are cut, both sides to {half}"
        else:
            kept = np.setdiff1d(np.arange(len(sources)), long)
            sources, targets = [sources[row] for row in kept], [targets[row] for row in kept]
            what = "are left out"
        if len(long):
            self.note += f"; {len(long):,} pairs longer than task.max_len={max_len} tokens {what}"
        self.train = sources, targets
        self._lengths = _lengths(sources), _lengths(targets)
        self.seq_len = round(float(sum(self._lengths).mean())) if len(sources) else 0
        self._model: type[LanguageModel] | LanguageModel = LanguageModel
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])
        self._steps = 0  # of an epoch, once they are counted

    def setup(self, model: LanguageModel) -> None:
        self._model, self._plan, self._steps = model, (-1, []), 0

    @property
    def steps_per_epoch(self) -> int:
        self._steps = self._steps or len(self._epoch(0))
        return self._steps

    def splits(self) -> list[str]:
        return ["val", "test"] if len(self.data.test.source) else ["val"]

    # ---- training

    def epochs(self, step: int) -> float:
        return step / self.steps_per_epoch

    def batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        rows = self._epoch(epoch)[index]
        sources, targets = self.train
        return self.collate(
            [sources[i] for i in rows], [targets[i] for i in rows], encodes=self._model.reads_source
        )

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, as indices into the training pairs; as many in every epoch.

        Pairs of about one length are put together, with ties in an order drawn anew; the batches
        then come in an order drawn anew.
        """
        if self._plan[0] != epoch:
            draw = np.random.default_rng((self.seed, 3, epoch))
            order = draw.permutation(len(self.train[0]))
            batches = list(_batches(self._model, order, *self._lengths, self.batch_tokens))
            self._plan = epoch, [batches[i] for i in draw.permutation(len(batches))]
        return self._plan[1]

    def collate(
        self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, encodes: bool
    ) -> Batch:
        """Right-padded rows of ``source <s> target``, or of ``<s> target`` beside those of the
        sources; and, where the target is to be said, what comes next. Targets have their end."""
        before = [s[:0] if encodes else s for s in sources]
        rows = [np.concatenate((s, [self.start], t)) for s, t in zip(before, targets, strict=True)]
        tokens = _padded(rows, self.pad)
        wanted = _padded(rows, IGNORE)
        for i, source in enumerate(before):
            wanted[i, : len(source) + 1] = IGNORE
        read = sum(map(len, rows)) - len(rows)
        beside: tuple[Any, ...] = ()
        if encodes:
            ended = _ended(self.source_tokenizer, sources)
            beside = (_padded(ended, self.pad), _lengths(ended).tolist())
            read += sum(beside[1])
        return Batch(tokens[:, :-1], wanted[:, 1:], True, read, beside)

    # ---- evaluation

    def evaluate(self, model: LanguageModel, split: str, *, quick: bool) -> dict[str, float | str]:
        """`loss` in nats a target token, `token_accuracy` and `exact` match in percent, BLEU and
        chrF of translations.

        `quick` translates the first `eval_pairs` pairs only, greedily; else as `task.beam` says,
        and how well, by the source's length too.
        """
        sources, targets = getattr(self.data, split)
        metrics: dict[str, float | str] = {
            f"{split}/{name}": value
            for name, value in self._teacher_forced(model, sources, targets).items()
        }
        if quick:
            sources, targets = sources[: self.eval_pairs], targets[: self.eval_pairs]
        said = translate(
            model,
            self.tokenizer,
            self.source_tokenizer,
            sources,
            beams=1 if quick else self.search,
            length_penalty=self.length_penalty,
        )
        references = self.data.references[split][: len(sources)]
        scores = score(said, references, self.target_lang)
        if not quick:
            read = [self.source_tokenizer.decode(source) for source in sources]
            scores |= by_length(said, references, read)
        return metrics | {f"{split}/{name}": value for name, value in scores.items()}

    @torch.inference_mode()
    def _teacher_forced(
        self, model: LanguageModel, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """`loss` and `token_accuracy` where every token is guessed behind the right ones."""
        device = model.embedding.weight.device
        total, right, count = 0.0, 0, 0
        targets = _ended(self.tokenizer, targets)
        lengths = _lengths(sources), _lengths(targets)
        room = [model.room(n + model.reads_source) for n in lengths[0]]
        every = np.flatnonzero(lengths[1] <= room)  # what is longer cannot be read
        for rows in _batches(model, every, *lengths, max(4096, self.batch_tokens)):
            batch = self.collate(
                [sources[r] for r in rows], [targets[r] for r in rows], encodes=model.reads_source
            ).to(device)
            logits, _ = model(batch.inputs, None, *batch.source)
            wanted = batch.targets.flatten()
            logits = logits.flatten(0, 1).float()
            total += float(F.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="sum"))
            right += int((logits.argmax(-1) == wanted).sum())
            count += int((wanted != IGNORE).sum())
        return {"loss": total / max(1, count), "token_accuracy": 100 * right / max(1, count)}

    def sample(self, model: LanguageModel) -> str:
        sources, targets = (side[:3] for side in self.data.val)
        said = translate(model, self.tokenizer, self.source_tokenizer, sources)
        read, written = self.source_tokenizer.decode, self.tokenizer.decode
        lines = zip(sources, said, targets, strict=True)
        return "\n".join(f"{read(s)}\n  -> {text}\n   = {written(t)}" for s, text, t in lines)

    def figures(self, model: LanguageModel) -> dict[str, Figure]:
        """Where the model looks while it says the targets of the first validation pairs."""
        from seqzoo.tasks.alignment import align, draw

        drawn = {}
        sources, targets = (side[:3] for side in self.data.val)
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            seen = align(model, self.tokenizer, self.source_tokenizer, source, target)
            if seen is not None:
                drawn[f"attention/{i}"] = draw(seen, layers=False)
        return drawn


def _batches(
    model: LanguageModel | type[LanguageModel],
    order: np.ndarray,
    sources: np.ndarray,
    targets: np.ndarray,
    most: int,
) -> Iterator[np.ndarray]:
    """The rows of `order`, sorted by length and cut where a batch would have more than `most`
    tokens, padding included.

    An encoder reads rows of one length together, so for one the source's length comes first.
    """
    apart = model.reads_source
    keys = (targets, sources) if apart else (sources + targets,)
    order = order[np.lexsort([key[order] for key in keys])]
    # What a row takes in each of the tensors that it is padded in.
    widths = np.stack((sources + 1, targets) if apart else (sources + targets,), 1)
    begin, widest = 0, widths[order[:1]].sum(0)
    for end, row in enumerate(order):
        wider = np.maximum(widest, widths[row])
        full = (end + 1 - begin) * wider.sum() > most
        other = model.wants_one_length and sources[row] != sources[order[begin]]
        if end > begin and (full or other):
            yield order[begin:end]
            begin, wider = end, widths[row]
        widest = wider
    if len(order):
        yield order[begin:]


def _lengths(sentences: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([len(ids) for ids in sentences], dtype=np.int64)


def _padded(rows: Sequence[np.ndarray], fill: int) -> Tensor:
    out = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def _ended(tokenizer: Tokenizer, sentences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sentences with their end."""
    end = tokenizer.id("</s>")
    return [np.append(ids, end) for ids in sentences]


# ---- translating


def translate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    sources: Sequence[np.ndarray],
    *,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[str]:
    """Translations of encoded sentences, in their order: greedy, or the best of a beam search."""
    if beams > 1:
        found = search(model, tokenizer, source_tokenizer, sources, beams, length_penalty)
        return [tokenizer.decode(best[0].tokens) for best in found]
    end = tokenizer.id("</s>")

    def say(prompt: Tensor, state: State, limit: int) -> list[list[int]]:
        steps = generate(model, prompt, state, max_tokens=limit, temperature=0, stop=end)
        return torch.stack(list(steps), 1).tolist()

    said = _each(model, tokenizer, source_tokenizer, sources, 256, say)
    return [tokenizer.decode(ids or []) for ids in said]


def search(
    model: LanguageModel,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    sources: Sequence[np.ndarray],
    beams: int,
    length_penalty: float,
) -> list[list[Hypothesis]]:
    """What `beam_search` finds for each encoded sentence, the best first. The translation of
    nothing is nothing."""

    def say(prompt: Tensor, state: State, limit: int) -> list[list[Hypothesis]]:
        return beam_search(
            model,
            prompt,
            state,
            beams=beams,
            max_tokens=limit,
            stop=tokenizer.id("</s>"),
            length_penalty=length_penalty,
        )

    found = _each(model, tokenizer, source_tokenizer, sources, max(1, 256 // beams), say)
    return [best or [Hypothesis([], 0.0)] for best in found]


def _each(
    model: LanguageModel,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    sources: Sequence[np.ndarray],
    at_once: int,
    say: Callable[[Tensor, State, int], list[Any]],
) -> list[Any]:
    """What `say` makes of each source, in their order; None of an empty one. It gets what to read
    after which state, and how many tokens to say at most: twice the source and 50.

    A model whose positions end reads the beginning of what is longer than they allow: half of them,
    where source and target share them.
    """
    out: list[Any] = [None] * len(sources)
    start, end = tokenizer.id("<s>"), source_tokenizer.id("</s>")
    for rows, source in _of_one_length(sources, model.longest_source, at_once):
        if model.reads_source:
            source = torch.cat((source, torch.full_like(source[:, :1], end)), 1)
        with torch.inference_mode(), evaluating(model):
            prompt, state = model.begin(source.to(model.embedding.weight.device), start)
        limit = min(2 * source.shape[1] + 50, model.room(source.shape[1]) - 1)
        for row, said in zip(rows, say(prompt, state, max(1, int(limit))), strict=True):
            out[row] = said
    return out


def _of_one_length(
    sources: Sequence[np.ndarray], longest: int | None, at_once: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Sources that are not empty in groups of one length: no row is padded, so every row's state is
    its own."""

    def length(row: int) -> int:
        return len(sources[row][:longest])

    order = sorted((row for row in range(len(sources)) if length(row)), key=length)
    for _, group in groupby(order, length):
        rows = list(group)
        for i in range(0, len(rows), at_once):
            part = rows[i : i + at_once]
            ids = np.stack([sources[row][:longest] for row in part]).astype(np.int64)
            yield part, torch.from_numpy(ids)


# ---- scores


def score(said: Sequence[str], references: Sequence[str], language: str) -> dict[str, float | str]:
    """Exact match in percent; sacreBLEU's BLEU and chrF with their signatures; and the BLEU of
    older papers, of lower-cased text that Moses' rules cut into tokens."""
    from sacrebleu.metrics import BLEU, CHRF

    metrics = {
        "bleu": BLEU(),
        "chrf": CHRF(),
        "bleu_tokenised": BLEU(lowercase=True, tokenize="none", force=True),
    }
    texts = {name: (list(said), list(references)) for name in metrics}
    texts["bleu_tokenised"] = (moses(said, language), moses(references, language))
    scores: dict[str, float | str] = {"exact": exact(said, references)}
    for name, metric in metrics.items():
        ours, theirs = texts[name]
        scores[name] = metric.corpus_score(ours, [theirs]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def exact(said: Sequence[str], references: Sequence[str]) -> float:
    """How many are their references, in percent."""
    same = sum(h == r for h, r in zip(said, references, strict=True))
    return 100 * same / max(1, len(references))


def moses(sentences: Sequence[str], language: str) -> list[str]:
    """Sentences cut into tokens by the rules of Moses' tokenizer, with spaces between."""
    cut = _moses(language)
    return [cut.tokenize(sentence, return_str=True, escape=False) for sentence in sentences]


@cache
def _moses(language: str) -> Any:
    from sacremoses import MosesTokenizer

    return MosesTokenizer(lang=language)


def by_length(
    said: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> dict[str, float | str]:
    """How well by the length of the source, for those lengths that there are, such as
    `bleu_by_words/06-10`: by the words in a source, or its letters where all sources are single
    words; BLEU, or exact match in percent where all references are."""
    from sacrebleu.metrics import BLEU

    letters, exactly = (not any(" " in text for text in side) for side in (sources, references))
    lengths = [len(source) if letters else len(source.split()) for source in sources]
    kind = f"{'exact' if exactly else 'bleu'}_by_{'letters' if letters else 'words'}"
    scores: dict[str, float | str] = {}
    above = 0
    for limit in (*(LETTERS if letters else WORDS), None):
        rows = [i for i, n in enumerate(lengths) if above < n and (limit is None or n <= limit)]
        name = f"{kind}/{above + 1:02}-" + (f"{limit:02}" if limit else "")
        ours, theirs = ([side[i] for i in rows] for side in (said, references))
        if rows:
            scores[name] = (
                exact(ours, theirs) if exactly else BLEU().corpus_score(ours, [theirs]).score
            )
        above = limit or 0
    return scores
