"""A finished (or unfinished) run, read back: its model, its words, its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seqzoo import tasks
from seqzoo.config import read_config, read_summary, vocabulary_sizes
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.decoding import generate
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build
from seqzoo.tasks.charlm import opening
from seqzoo.runs.checkpoint import load_weights, verify
from seqzoo.training.device import pick_device, pick_dtype

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run:
    """A run directory.

    Attributes:
        folder: where it is.
        config: the whole configuration it ran with.
        summary: summary.json, or {} while it has none.
        model: in evaluation mode, with the best checkpoint's weights unless another was asked for.
        tokenizer: text to tokens and back.
        source_tokenizer: the same for what an encoder reads; the same one, unless the task has two.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        model: LanguageModel,
        tokenizer: Tokenizer,
        source_tokenizer: Tokenizer | None = None,
    ) -> None:
        self.folder, self.config, self.model = folder, config, model
        self.tokenizer, self.source_tokenizer = tokenizer, source_tokenizer or tokenizer
        self.summary = read_summary(folder)

    def stream(
        self,
        prompt: str,
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue a prompt, piece by piece as it is made. An empty prompt begins with a
        new line.

        A state that grows keeps the tokens of one training sequence.

        Raises:
            UserError: a character the tokenizer has not.
        """
        ids = self.tokenizer.encode(opening(self.tokenizer, prompt)).astype("int64")
        random = torch.Generator()
        if seed is None:
            random.seed()
        else:
            random.manual_seed(seed)
        text = self.tokenizer.stream()
        for token in generate(
            self.model,
            torch.from_numpy(ids)[None].to(self.model.embedding.weight.device),
            max_tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=random,
            window=self.config["task"].get("seq_len"),
        ):
            yield text(int(token))
        yield text.flush()

    def generate(self, prompt: str, tokens: int, **options: Any) -> str:
        """The prompt and its continuation; options as `stream`."""
        return prompt + "".join(self.stream(prompt, tokens, **options))

    def translate(
        self, sentences: Sequence[str], *, beams: int = 1, length_penalty: float = 1.0
    ) -> list[str]:
        """Translations of sentences, in order: greedy, or with `beams` the best that `beam_search`
        finds. Of a sentence longer than the model has positions the beginning is read.

        Raises:
            UserError: the run learnt something else; one sentence that is not in a list.
        """
        from seqzoo.tasks.translation import translate

        return translate(
            self.model,
            self.tokenizer,
            self.source_tokenizer,
            self._sources(sentences),
            beams=beams,
            length_penalty=length_penalty,
        )

    def n_best(
        self, sentences: Sequence[str], *, beams: int, length_penalty: float = 1.0
    ) -> list[list[tuple[str, float]]]:
        """Translations of each sentence with their scores, `beams` of them, the best first.

        Raises:
            UserError: the run learnt something else.
        """
        found = self._search(sentences, beams, length_penalty)
        return [[(self.tokenizer.decode(h.tokens), h.score) for h in best] for best in found]

    def unknown(self, sentences: Sequence[str]) -> str:
        """The characters of sentences, each once, that are not in the vocabulary: all of them are
        read as the one token `<unk>`."""
        return self.source_tokenizer.unknown("".join(self._cased(sentences)))

    def align(
        self, sentence: str, *, beams: int = 1, length_penalty: float = 1.0
    ) -> tuple[str, Figure]:
        """The translation of a sentence, and where the model looked: see `seqzoo.tasks.alignment`.

        Raises:
            UserError: the run learnt something else, or no operation of the model weighs anything.
        """
        from seqzoo.tasks.alignment import align, draw

        if not sentence:
            raise UserError("nothing to look at: the sentence is empty")
        said = self._search([sentence], beams, length_penalty)[0][0].tokens
        (source,) = self._sources([sentence])
        both = self.tokenizer, self.source_tokenizer
        seen = align(self.model, *both, source, np.array(said, dtype=np.int64))
        if seen is None:
            change = "model.bridge=attention" if self.model.reads_source else "head=encoder_decoder"
            raise UserError(
                f"{self.folder}: nothing in {self.config['model']['name']} looks back at its "
                f"source: train with {change}"
            )
        return self.tokenizer.decode(said), draw(seen)

    def _search(self, sentences: Sequence[str], beams: int, length_penalty: float) -> Any:
        from seqzoo.tasks.translation import search

        both = self.tokenizer, self.source_tokenizer
        return search(self.model, *both, self._sources(sentences), beams, length_penalty)

    def _sources(self, sentences: Sequence[str]) -> list[Any]:
        task = self.config["task"]
        if "target_lang" not in task:
            raise UserError(f"{self.folder}: a run of task={task['name']}, not of translation")
        return [self.source_tokenizer.encode(sentence) for sentence in self._cased(sentences)]

    def _cased(self, sentences: Sequence[str]) -> list[str]:
        if isinstance(sentences, str):
            raise UserError(f"{sentences!r}: give a list of sentences")
        lower = self.config["task"].get("lowercase", False)
        return [sentence.lower() if lower else sentence for sentence in sentences]

    def evaluate(
        self, split: str = "val", search: Mapping[str, Any] = {}, **data: Any
    ) -> dict[str, float | str]:
        """The task's metrics on a split of the run's own data, or of other data, in the precision
        of the training.

        Args:
            split: `val` or, where the task has one, `test`.
            search: `beam` and `length_penalty` of a translation, in place of the run's.
            **data: keys of the task in place of the run's (`path="other.txt"`): the whole of it is
                then evaluated.

        Raises:
            UserError: no such split; other data the tokenizer cannot read.
        """
        keys = {**self.config["task"], **search, **data}
        encoded = tasks.prepare(keys, self.tokenizer, self.source_tokenizer, whole=bool(data))
        task = tasks.make(keys, encoded, seed=self.config["trainer"]["seed"])
        if split not in task.splits():
            raise UserError(f"--split {split}: this task has {', '.join(task.splits())}")
        sha256 = self.summary.get("data_sha256")
        if not data and sha256 not in (None, task.data_sha256):
            raise UserError(
                f"{self.folder}: its data has changed since (sha256 {sha256[:12]}, now "
                f"{task.data_sha256[:12]}): put it back, or give a file to measure on"
            )
        device = self.model.embedding.weight.device
        dtype = pick_dtype(self.config["trainer"]["dtype"], device)  # as during training
        narrow = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        with torch.inference_mode(), narrow:
            return task.evaluate(self.model, split, quick=False)


def load(
    folder: str | Path, *, device: str = "auto", checkpoint: str | None = None, **model_keys: Any
) -> Run:
    """Read a run directory back.

    Args:
        folder: as `seqzoo train` left it.
        device: `auto`, `cpu`, `cuda`.
        checkpoint: `best` or `last`; without it the exported model, or the best checkpoint of an
            unfinished run.
        **model_keys: in place of the run's own, such as `cache="tova:64"`; none that changes a
            weight's shape.

    Raises:
        UserError: the folder is no run, has no such checkpoint, or a damaged one.
    """
    folder = Path(folder)
    config = read_config(folder)
    if checkpoint is None:
        weights = folder / "model" / "model.safetensors"
        if not weights.exists():
            checkpoint = "best"
    if checkpoint is not None:
        at = folder / "checkpoints" / checkpoint
        if not at.exists():
            raise UserError(
                f"{folder}: no {checkpoint} checkpoint yet: wait for one, or train again"
            )
        verify(at)
        weights = at / "model.safetensors"
    tokenizer = source_tokenizer = Tokenizer.load(folder / "model" / "tokenizer.json")
    if (folder / "model" / "source_tokenizer.json").exists():
        source_tokenizer = Tokenizer.load(folder / "model" / "source_tokenizer.json")
    model = build(**vocabulary_sizes(folder), **{**config["model"], **model_keys})
    model.to(pick_device(device))
    load_weights(weights, model)
    return Run(folder, config, model.eval(), tokenizer, source_tokenizer)
