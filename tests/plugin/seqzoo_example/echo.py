"""A task with a metric of its own: read a word and a bar, then write the word again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.state import State
from seqzoo.tasks.next_token import IGNORE, TokenBatch, next_token_loss
from seqzoo.tasks.task import Forward, Metric
from seqzoo_example.echo_data import Words


class Echo:
    """`abca|abca`: the loss is that of the letters after the bar."""

    name = "echo"
    metrics = (
        Metric("echoed", higher_is_better=True, unit="%"),  # letters predicted right
        Metric("loss", unit="nats"),
    )
    carries = False
    quick_is_less = False

    @checked()
    def __init__(self, data: Words, *, seed: int, n_letters: Count, batch_size: Count) -> None:
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self.note = f"{len(data.train)} words of {n_letters} letters"
        self.data_sha256 = data.sha256
        self.seq_len = 2 * n_letters
        self.bar = int(data.tokenizer.encode("|")[0])

    def setup(self, model: Any) -> None:
        pass

    def splits(self) -> list[str]:
        return ["val"]

    def tokenizers(self) -> dict[str, Tokenizer]:
        return {"tokenizer": self.data.tokenizer}

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": self.data.tokenizer.vocab_size}

    def epochs(self, step: int) -> float:
        return step * self.batch_size / len(self.data.train)

    def batch(self, step: int) -> TokenBatch:
        random = np.random.default_rng((self.seed, step))
        rows = random.integers(len(self.data.train), size=self.batch_size)
        return self._batch_of(self.data.train[rows])

    def _batch_of(self, words: np.ndarray) -> TokenBatch:
        bars = np.full((len(words), 1), self.bar)
        tokens = torch.from_numpy(np.concatenate((words, bars, words), 1)).long()
        targets = tokens[:, 1:].clone()
        targets[:, : words.shape[1]] = IGNORE
        inputs = tokens[:, :-1]
        return TokenBatch(inputs, targets, True, n_tokens=inputs.numel(), n_targets=words.size)

    def objective(
        self, forward: Forward, batch: TokenBatch, state: State, *, progress: float
    ) -> tuple[Tensor, State]:
        logits, state = forward(batch.inputs, state)
        return next_token_loss(logits, batch.targets), state

    @torch.inference_mode()
    def evaluate(self, model: Any, split: str, *, quick: bool) -> dict[str, float]:
        batch = self._batch_of(self.data.val).to(model.embedding.weight.device)
        logits, _ = model(batch.inputs)
        asked = batch.targets != IGNORE
        right = (logits.argmax(-1) == batch.targets)[asked].float().mean()
        loss = next_token_loss(logits, batch.targets) / batch.n_targets
        return {f"{split}/echoed": 100 * float(right), f"{split}/loss": float(loss)}

    def facts(self) -> dict[str, str]:
        return {}

    @torch.inference_mode()
    def sample(self, model: Any) -> str:
        batch = self._batch_of(self.data.val[:1]).to(model.embedding.weight.device)
        predicted = model(batch.inputs)[0].argmax(-1)[batch.targets != IGNORE]
        decode = self.data.tokenizer.decode
        return f"{decode(self.data.val[0])}|{decode(predicted.tolist())}"

    def figures(self, model: Any) -> dict[str, Any]:
        return {}
