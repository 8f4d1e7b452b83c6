"""Character (or byte, or subword) language model: predict the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.data.corpora import EncodedCorpus
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.decoding import generate
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.state import trim
from seqzoo.tasks.task import Batch


class CharLM:
    """Next-token prediction over one long text.

    With a carried state the text is a circle cut into B lanes; step k reads the next `seq_len`
    tokens of every lane, from the state the step before left (truncated back-propagation through
    time). Otherwise a step reads B blocks of `seq_len` tokens, each from the empty state, in an
    order drawn anew, with new block borders, every epoch.
    """

    name = "charlm"
    best = "val/stream_loss"
    quick_is_less = False

    def __init__(self, keys: Mapping[str, Any], data: EncodedCorpus, *, seed: int) -> None:
        self.data, self.seed = data, seed
        self.tokenizer = self.source_tokenizer = data.tokenizer
        self.note, self.data_sha256 = data.note, data.sha256
        self.seq_len, self.batch_size = keys["seq_len"], keys["batch_size"]
        self.carry, self.reset = keys["carry"], keys["reset"]
        self.prompt = opening(self.tokenizer, keys["prompt"])
        self.sample_tokens = keys["sample_tokens"]
        self.train = torch.from_numpy(np.asarray(data.train).astype(np.int64))
        self.carries = self.carry is True
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def setup(self, model: LanguageModel) -> None:
        bounded = not (model.state_grows or model.max_len)
        if self.carry is True and not bounded:
            raise UserError(
                "task.carry=true: this model's state has no bound to be carried for ever: "
                "use task.carry=auto"
            )
        self.carries = bounded and self.carry is not False

    def splits(self) -> list[str]:
        return ["val"]

    # ---- training

    def epochs(self, step: int) -> float:
        return step * self.batch_size * self.seq_len / len(self.train)

    def batch(self, step: int) -> Batch:
        N, B, T = len(self.train), self.batch_size, self.seq_len
        if self.carries:
            start = torch.arange(B) * (N // B) + step * T
            fresh = step == 0 or self._uniform(step) < self.reset
        else:
            start, fresh = self._blocks(step), True
        tokens = self.train[(start[:, None] + torch.arange(T + 1)) % N]  # (B, T + 1)
        return Batch(tokens[:, :-1], tokens[:, 1:], fresh, B * T)

    def _blocks(self, step: int) -> Tensor:
        """Where the blocks of this step begin, (B,)."""
        per_epoch = len(self.train) // self.seq_len
        number = step * self.batch_size + torch.arange(self.batch_size)
        return torch.stack([self._epoch_order(int(n) // per_epoch)[n % per_epoch] for n in number])

    def _epoch_order(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            draw = np.random.default_rng((self.seed, 1, epoch))
            starts = draw.permutation(
                len(self.train) // self.seq_len
            ) * self.seq_len + draw.integers(self.seq_len)
            self._order = epoch, torch.from_numpy(starts)
        return self._order[1]

    def _uniform(self, step: int) -> float:
        return float(np.random.default_rng((self.seed, 2, step)).random())

    # ---- evaluation

    def evaluate(self, model: LanguageModel, split: str, *, quick: bool) -> dict[str, float | str]:
        """`loss` on blocks from the empty state, `stream_loss` over the whole split read once; nats
        a token, and `bpc` and `stream_bpc` in bits a character."""
        text = torch.from_numpy(np.asarray(self.data.val).astype(np.int64))
        bits = len(text) / self.data.val_chars / math.log(2)
        block, stream = (
            block_loss(model, text, self.seq_len),
            stream_loss(model, text, self.seq_len),
        )
        return {
            f"{split}/loss": block,
            f"{split}/bpc": block * bits,
            f"{split}/stream_loss": stream,
            f"{split}/stream_bpc": stream * bits,
        }

    def sample(self, model: LanguageModel) -> str:
        device = model.embedding.weight.device
        prompt = torch.from_numpy(self.tokenizer.encode(self.prompt).astype(np.int64))[None].to(
            device
        )
        tokens = generate(
            model,
            prompt,
            max_tokens=self.sample_tokens,
            temperature=0.8,
            generator=torch.Generator().manual_seed(self.seed),
            window=self.seq_len,
        )
        return self.prompt + self.tokenizer.decode([int(t) for t in tokens])

    def figures(self, model: LanguageModel) -> dict[str, Any]:
        return {}


def opening(tokenizer: Tokenizer, prompt: str) -> str:
    """The prompt, or where it is a mere new line that this text has not, the first token there is.

    Raises:
        UserError: the prompt has a character the tokenizer has not.
    """
    if prompt.strip():
        tokenizer.encode(prompt)
        return prompt
    try:
        return prompt if len(tokenizer.encode(prompt)) else opening(tokenizer, "\n")
    except UserError:
        return tokenizer.decode([0])


@torch.inference_mode()
def block_loss(
    model: LanguageModel, text: Tensor, seq_len: int, tokens_at_once: int = 16_384
) -> float:
    """Mean loss a token over consecutive blocks of `seq_len`, each read from the empty state.
    nats."""
    device = model.embedding.weight.device
    whole = (len(text) - 1) // seq_len
    total = 0.0
    inputs = text[: whole * seq_len].view(whole, seq_len)
    targets = text[1 : whole * seq_len + 1].view(whole, seq_len)
    rows = max(1, tokens_at_once // seq_len)
    parts = list(zip(inputs.split(rows), targets.split(rows), strict=True)) if whole else []
    if whole * seq_len < len(text) - 1:
        parts.append((text[None, whole * seq_len : -1], text[None, whole * seq_len + 1 :]))
    for x, y in parts:
        logits, _ = model(x.to(device))
        total += nats(logits, y.to(device))
    return total / (len(text) - 1)


@torch.inference_mode()
def stream_loss(model: LanguageModel, text: Tensor, seq_len: int) -> float:
    """Mean loss a token over the text read once from its start, the state carried on. nats.

    A state that grows keeps at most `seq_len` tokens, those of the chunk included. A model whose
    positions end reads each chunk anew behind the half `seq_len` of tokens before it.
    """
    device = model.embedding.weight.device
    text = text.to(device)
    total = sum(nats(logits, targets) for logits, targets in _stream(model, text, seq_len))
    return total / (len(text) - 1)


def _stream(model: LanguageModel, text: Tensor, seq_len: int) -> Iterator[tuple[Tensor, Tensor]]:
    if model.max_len is not None:
        chunk = max(1, min(seq_len, model.max_len) // 2)
        for start in range(0, len(text) - 1, chunk):
            begin, end = max(0, start - chunk), min(start + chunk, len(text) - 1)
            logits, _ = model(text[None, begin:end])
            yield logits[:, start - begin :], text[None, start + 1 : end + 1]
        return
    chunk = max(1, min(64, seq_len // 4)) if model.state_grows else 4096
    state = None
    for start in range(0, len(text) - 1, chunk):
        end = min(start + chunk, len(text) - 1)
        logits, state = model(text[None, start:end], trim(state, max(1, seq_len - chunk)))
        yield logits, text[None, start + 1 : end + 1]


def nats(logits: Tensor, targets: Tensor) -> float:
    """Summed cross-entropy of logits (B, T, V) against targets (B, T)."""
    return float(F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum"))
