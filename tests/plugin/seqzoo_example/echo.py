"""A task: read a word and a bar, then write the word again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.tasks.next_token import IGNORE, TokenBatch, next_token_loss
from seqzoo.tasks.task import Metric


class Echo:
    name = "echo"
    metrics = (Metric("echoed", higher_is_better=True, unit="%"), Metric("loss", unit="nats"))
    carries = False
    quick_is_less = False

    @checked()
    def __init__(self, data: Any, *, seed: int, n_letters: Count, batch_size: Count) -> None:
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self.note, self.data_sha256 = "words to be written again", data.sha256
        self.seq_len = 2 * n_letters
        self.bar = int(data.tokenizer.encode("|")[0])

    def setup(self, model: Any) -> None:
        pass

    def splits(self) -> list[str]:
        return ["val"]

    def tokenizers(self) -> dict[str, Any]:
        return {"tokenizer": self.data.tokenizer}

    def sizes(self) -> dict[str, int]:
        return {"vocab_size": self.data.tokenizer.vocab_size}

    def epochs(self, step: int) -> float:
        return step * self.batch_size / len(self.data.train)

    def batch(self, step: int) -> TokenBatch:
        rows = np.random.default_rng((self.seed, step)).integers(
            len(self.data.train), size=self.batch_size
        )
        return self._collate(self.data.train[rows])

    def _collate(self, words: np.ndarray) -> TokenBatch:
        bar = np.full((len(words), 1), self.bar)
        tokens = torch.from_numpy(np.concatenate((words, bar, words), 1)).long()
        targets = tokens[:, 1:].clone()
        targets[:, : words.shape[1]] = IGNORE
        return TokenBatch(tokens[:, :-1], targets, True, targets.numel(), words.size)

    def objective(self, forward: Any, batch: TokenBatch, state: Any, *, progress: float) -> Any:
        logits, state = forward(batch.inputs, state)
        return next_token_loss(logits, batch.targets), state

    @torch.inference_mode()
    def evaluate(self, model: Any, split: str, *, quick: bool) -> dict[str, float]:
        batch = self._collate(self.data.val)
        logits, _ = model(batch.inputs)
        chosen = batch.targets != IGNORE
        right = (logits.argmax(-1) == batch.targets)[chosen].float().mean()
        loss = float(next_token_loss(logits, batch.targets)) / batch.n_targets
        return {"val/echoed": 100 * float(right), "val/loss": loss}

    def facts(self) -> dict[str, str]:
        return {}

    def sample(self, model: Any) -> str:
        return self.data.tokenizer.decode(self.data.val[0])

    def figures(self, model: Any) -> dict[str, Any]:
        return {}
