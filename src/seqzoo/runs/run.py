"""`Run`: a run read back, with its model, tokenizers and numbers, and what it can be used for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from seqzoo import tasks
from seqzoo.config.requires import check_requirements
from seqzoo.config.values import Count, check_value
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.decoding.sampling import generate
from seqzoo.errors import UserError
from seqzoo.models.classifier import Classifier
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build, build_keys
from seqzoo.runs.directory import RunDirectory
from seqzoo.tasks.charlm import opening
from seqzoo.tasks.translate import Translator
from seqzoo.training.device import autocast, pick_device, pick_dtype

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run:
    """A run directory and its model.

    Attributes:
        folder: the directory.
        config: the whole configuration.
        summary: summary.json; {} while there is none.
        model: in evaluation mode, with the exported weights unless another checkpoint was named.
        tokenizer: text to tokens and back.
        source_tokenizer: of what an encoder reads; the same one, unless the task has two.
    """

    def __init__(
        self, directory: RunDirectory, model: LanguageModel, tokenizers: Mapping[str, Tokenizer]
    ) -> None:
        self.directory, self.model, self._tokenizers = directory, model, dict(tokenizers)
        self.folder, self.config, self.summary = directory.path, directory.config, directory.summary
        self.tokenizer = self._tokenizers["tokenizer"]
        self.source_tokenizer = self._tokenizers.get("source_tokenizer", self.tokenizer)

    def __repr__(self) -> str:
        """The model, the task, and how far the run is, in a line."""
        facts = [f"{self.config['model']['name']} on {self.config['task']['name']}"]
        facts.append(f"{self.model.n_parameters():,} parameters")
        if self.summary:
            facts.append(f"{self.summary.get('status')} at step {self.summary.get('steps', 0):,}")
            values = self.summary.items()
            val = [(k, v) for k, v in values if k.startswith("val/") and isinstance(v, float)]
            facts += [f"{key} {value:.4g}" for key, value in val[:1]]
        return f"<Run {self.folder}: {', '.join(facts)}>"

    def metrics(self) -> dict[str, list[Any]]:
        """metrics.jsonl as columns of one length, ready for ``pandas.DataFrame(run.metrics())``.

        A line without a metric has None in its column.
        """
        lines = self.directory.metrics()
        columns = dict.fromkeys(key for line in lines for key in line)
        return {column: [line.get(column) for line in lines] for column in columns}

    # ---- language models

    def stream(
        self,
        prompt: str,
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        weights: str = "float32",
        kv_cache: str = "float32",
    ) -> Iterator[str]:
        """Continue a prompt, and yield the text as it is generated. An empty prompt begins with a
        new line.

        A state that grows keeps the tokens of one training sequence. With `weights` of `bfloat16`
        or `int8` a token after the prompt reads fewer bytes on a CPU, and the logits are less
        exact; with a `kv_cache` of these types so do the keys and values of the tokens before.

        Raises:
            UserError: the task is no language model; a character that the vocabulary lacks; fewer
                than one token; no such weights or kv_cache, or none for this model, device or
                number of tokens.
        """
        self._require("generate")
        check_value("tokens", tokens, Count)
        ids = self.tokenizer.encode(opening(self.tokenizer, prompt)).astype("int64")
        random = torch.Generator()
        if seed is None:
            random.seed()
        else:
            random.manual_seed(seed)
        text = self.tokenizer.stream()
        for token in generate(
            self.model,
            torch.from_numpy(ids)[None].to(self._device),
            max_tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=random,
            window=self.config["task"].get("seq_len"),
            weights=weights,
            kv_cache=kv_cache,
        ):
            yield text(int(token))
        yield text.flush()

    def generate(self, prompt: str, tokens: int, **options: Any) -> str:
        """The prompt and its continuation; options as `stream`."""
        return prompt + "".join(self.stream(prompt, tokens, **options))

    # ---- translation

    def translate(
        self, sentences: Sequence[str], *, beams: int = 1, length_penalty: float = 1.0
    ) -> list[str]:
        """Translations of sentences, in order: greedy, or with `beams` the best of a beam search.
        A sentence with more tokens than the model has positions for is cut.

        Raises:
            UserError: the task is no translation; one sentence that is not in a list.
        """
        return self._translator().translate(
            self._sources(sentences), beams=beams, length_penalty=length_penalty
        )

    def n_best(
        self, sentences: Sequence[str], *, beams: int, length_penalty: float = 1.0
    ) -> list[list[tuple[str, float]]]:
        """For each sentence `beams` translations with their scores, the best first.

        Raises:
            UserError: as `translate`.
        """
        found = self._translator().n_best(
            self._sources(sentences), beams=beams, length_penalty=length_penalty
        )
        return [[(self.tokenizer.decode(h.tokens), h.score) for h in best] for best in found]

    def unknown(self, sentences: Sequence[str]) -> str:
        """The characters of sentences, each once, that the vocabulary lacks: each is read as the
        token `<unk>`."""
        return self.source_tokenizer.unknown("".join(self._cased(sentences)))

    def align(
        self, sentence: str, *, beams: int = 1, length_penalty: float = 1.0
    ) -> tuple[str, Figure]:
        """The translation of a sentence, and a figure of the attention to its tokens: see
        `seqzoo.tasks.alignment`.

        Raises:
            UserError: as `translate`; no operation of the model has attention weights.
        """
        from seqzoo.tasks.alignment import align, draw

        if not sentence:
            raise UserError("the sentence is empty: give one with words in it")
        (source,) = self._sources([sentence])
        found = self._translator().n_best([source], beams=beams, length_penalty=length_penalty)
        best = found[0][0]
        tokens = np.array(best.tokens, dtype=np.int64)
        drawn = align(self.model, self.tokenizer, self.source_tokenizer, source, tokens)
        if drawn is None:
            name = self.config["architecture"]["name"]
            change = "architecture=encoder_decoder"
            if name == "encoder_decoder":
                change = "architecture.bridge=attention"
            raise UserError(
                f"{self.folder}: {self.config['model']['name']} has no attention to its source: "
                f"train with {change}"
            )
        return self.tokenizer.decode(best.tokens), draw(drawn)

    def _translator(self) -> Translator:
        self._require("translate")
        return Translator(self.model, self.tokenizer, self.source_tokenizer)

    def _sources(self, sentences: Sequence[str]) -> list[np.ndarray]:
        return [self.source_tokenizer.encode(sentence) for sentence in self._cased(sentences)]

    def _cased(self, sentences: Sequence[str]) -> list[str]:
        if isinstance(sentences, str):
            raise UserError(f"{sentences!r}: give a list of sentences")
        lower = self.config["task"].get("lowercase", False)
        return [sentence.lower() if lower else sentence for sentence in sentences]

    # ---- classification

    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The likeliest label of each text and its probability; of an empty text `""` and 0.

        Raises:
            UserError: the task is no classification; one text that is not in a list.
        """
        from seqzoo.tasks.classification import predict

        self._require("classify")
        if isinstance(texts, str):
            raise UserError(f"{texts!r}: give a list of texts")
        labels, max_len = self._tokenizers["labels"], self.config["task"]["max_len"]
        return predict(cast(Classifier, self.model), self.tokenizer, labels, texts, max_len=max_len)

    # ---- any task

    def evaluate(
        self, split: str = "val", search: Mapping[str, Any] = {}, **data: Any
    ) -> dict[str, float]:
        """The task's metrics on a split of the run's own data, or of other data, in the precision
        of the training.

        Args:
            split: `val` or, where the task has one, `test`.
            search: `beam` and `length_penalty` of a translation, in place of the run's.
            **data: keys of the task in place of the run's (`path="other.txt"`); the whole of that
                data is then evaluated.

        Raises:
            UserError: no such split; other data that the tokenizer cannot encode; own data that has
                changed.
        """
        if not data:
            check_requirements(self.config, self.folder, "task.corpus")
        keys = {**self.config["task"], **search, **data}
        prepared = tasks.prepare(keys, self._tokenizers, whole=bool(data))
        task = tasks.make(keys, prepared, seed=self.config["trainer"]["seed"])
        if split not in task.splits():
            raise UserError(f"--split {split}: this task has {', '.join(task.splits())}")
        sha256 = self.summary.get("data_sha256")
        if not data and sha256 not in (None, task.data_sha256):
            raise UserError(
                f"{self.folder}: its data has changed since (sha256 {sha256[:12]}, now "
                f"{task.data_sha256[:12]}): put it back, or give a file to measure on"
            )
        dtype = pick_dtype(self.config["trainer"]["dtype"], self._device)
        with torch.inference_mode(), autocast(self._device, dtype):
            return task.evaluate(self.model, split, quick=False)

    @property
    def _device(self) -> torch.device:
        return self.model.embedding.weight.device

    def _require(self, command: str) -> None:
        tasks.check_supported(command, self.config["task"]["name"], self.folder)


def load(
    folder: str | Path, *, device: str = "auto", checkpoint: str | None = None, **model_keys: Any
) -> Run:
    """Read a run back.

    Args:
        folder: a run directory, or the folder `model` of one, which loads by itself.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        checkpoint: `best` or `last`; without it the exported model, or the best checkpoint of an
            unfinished run.
        **model_keys: in place of the run's own, such as `cache="tova:64"`; none that changes the
            shape of a weight.

    Raises:
        UserError: the folder is no run, or has no such checkpoint, or a damaged one; its model or
            task is from a plugin that is not in use here.
    """
    directory = RunDirectory.open(Path(folder))
    config = directory.config
    check_requirements(config, folder, "model", "task")
    tokenizers = {
        name: Tokenizer.load(path)
        for name in ("tokenizer", "source_tokenizer", "labels")
        if (path := directory.tokenizer_path(name)) is not None
    }
    model = build(**directory.sizes(), **{**build_keys(config), **model_keys})
    model.to(pick_device(device))
    directory.load_weights(model, checkpoint)
    return Run(directory, model.eval(), tokenizers)
