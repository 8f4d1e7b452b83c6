"""Character (or byte, or subword) language model: predict the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Share, Smoothing, Text
from seqzoo.data.corpora import EncodedCorpus
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.decoding.sampling import generate
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.state import State, trim
from seqzoo.tasks.next_token import TokenBatch, next_token_loss, replace_by_predictions
from seqzoo.tasks.task import Forward, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAM_CHUNK = 4096  # tokens an evaluation of the stream reads at once
EVAL_TOKENS = 16_384  # tokens an evaluation of blocks reads at once
QUICK_TOKENS = (
    4096  # tokens at the start of the validation text, of which a quick one reads no more
)


class CharLM:
    """Next-token prediction over one long text.

    With a carried state the text is a circle cut into B lanes; step k reads the next `seq_len`
    tokens of every lane, from the state the step before left (truncated back-propagation through
    time). Otherwise a step reads B blocks of `seq_len` tokens, each from the empty state, in an
    order drawn anew, with new block borders, every epoch.
    """

    name = "charlm"
    metrics = (
        Metric("stream_loss", unit="nats", of_tokens=True),
        Metric("loss", unit="nats", of_tokens=True),
        Metric("bpc", unit="bits"),
        Metric("stream_bpc", unit="bits"),
    )

    @checked()
    def __init__(
        self,
        data: EncodedCorpus,
        *,
        seed: int,
        seq_len: Count,
        batch_size: Count,
        carry: Literal["auto", True, False],
        reset: Share,
        prompt: Text,
        sample_tokens: Count,
        label_smoothing: Smoothing,
        scheduled_sampling: Share,
    ) -> None:
        self.data, self.seed = data, seed
        self.tokenizer = data.tokenizer
        self.note, self.data_sha256 = data.note, data.sha256
        self.val_sha256 = data.val_sha256
        self.seq_len, self.batch_size = seq_len, batch_size
        self.carry, self.reset = carry, reset
        self.prompt = opening(self.tokenizer, prompt)
        self.sample_tokens = sample_tokens
        self.label_smoothing, self.scheduled_sampling = label_smoothing, scheduled_sampling
        self.train = torch.from_numpy(np.asarray(data.train).astype(np.int64))
        self.carries = carry is True
        self.quick_is_less = False
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def setup(self, model: LanguageModel) -> None:
        bounded = not (model.state_grows or model.max_len)
        if self.carry is True and not bounded:
            raise UserError(
                "task.carry=true: this model's state has no bound, so it cannot be carried for "
                "ever: use task.carry=auto"
            )
        self.carries = bounded and self.carry is not False

    def shorten(self) -> bool:
        self.quick_is_less = len(self.data.val) > QUICK_TOKENS
        return self.quick_is_less

    def splits(self) -> list[str]:
        return ["val"]

    def tokenizers(self) -> dict[str, Tokenizer]:
        return {"tokenizer": self.tokenizer}

    def sizes(self) -> dict[str, Any]:
        return {"vocab_size": self.tokenizer.vocab_size}

    # ---- training

    def epochs(self, step: int) -> float:
        return step * self.batch_size * self.seq_len / len(self.train)

    def batch(self, step: int) -> TokenBatch:
        N, B, T = len(self.train), self.batch_size, self.seq_len
        if self.carries:
            start = torch.arange(B) * (N // B) + step * T
            draw = np.random.default_rng((self.seed, 2, step))
            fresh = step == 0 or float(draw.random()) < self.reset
        else:
            start, fresh = self._blocks(step), True
        tokens = self.train[(start[:, None] + torch.arange(T + 1)) % N]  # (B, T + 1)
        return TokenBatch(tokens[:, :-1], tokens[:, 1:], fresh, B * T, B * T)

    def objective(
        self, forward: Forward, batch: TokenBatch, state: State, *, progress: float
    ) -> tuple[Tensor, State]:
        batch = replace_by_predictions(forward, batch, state, self.scheduled_sampling * progress)
        logits, state = forward(batch.inputs, state)
        return next_token_loss(logits, batch.targets, self.label_smoothing), state

    def _blocks(self, step: int) -> Tensor:
        """Where the blocks of this step begin, (B,)."""
        per_epoch = len(self.train) // self.seq_len
        number = step * self.batch_size + torch.arange(self.batch_size)
        return torch.stack([self._epoch_order(int(n) // per_epoch)[n % per_epoch] for n in number])

    def _epoch_order(self, epoch: int) -> Tensor:
        """Where the blocks of an epoch begin, in the order in which they are read."""
        if self._order[0] != epoch:
            draw = np.random.default_rng((self.seed, 1, epoch))
            blocks = draw.permutation(len(self.train) // self.seq_len)
            starts = blocks * self.seq_len + draw.integers(self.seq_len)
            self._order = epoch, torch.from_numpy(starts)
        return self._order[1]

    # ---- evaluation

    def evaluate(self, model: LanguageModel, split: str, *, quick: bool) -> dict[str, float]:
        """`loss` on blocks from the empty state, `stream_loss` over the whole split read once, in
        nats a token; `bpc` and `stream_bpc`, the same in bits a character."""
        read = self.data.val[: QUICK_TOKENS + 1] if quick and self.quick_is_less else self.data.val
        text = torch.from_numpy(np.asarray(read).astype(np.int64))
        bits = (
            len(self.data.val) / self.data.val_chars / math.log(2)
        )  # tokens a character, of all of it
        block = block_loss(model, text, self.seq_len)
        stream = stream_loss(model, text, self.seq_len)
        return {
            f"{split}/loss": block,
            f"{split}/bpc": block * bits,
            f"{split}/stream_loss": stream,
            f"{split}/stream_bpc": stream * bits,
        }

    def facts(self) -> dict[str, str]:
        return {}

    def sample(self, model: LanguageModel) -> str:
        prompt = torch.from_numpy(self.tokenizer.encode(self.prompt).astype(np.int64))[None]
        tokens = generate(
            model,
            prompt.to(model.embedding.weight.device),
            max_tokens=self.sample_tokens,
            temperature=0.8,
            generator=torch.Generator().manual_seed(self.seed),
            window=self.seq_len,
        )
        return self.prompt + self.tokenizer.decode([int(t) for t in tokens])

    def figures(self, model: LanguageModel) -> dict[str, Figure]:
        return {}


def opening(tokenizer: Tokenizer, prompt: str) -> str:
    """The prompt; of blanks alone that the vocabulary lacks, a new line or else the first token.

    Raises:
        UserError: the prompt has a character the vocabulary lacks.
    """
    if prompt.strip():
        tokenizer.encode(prompt)
        return prompt
    try:
        return prompt if len(tokenizer.encode(prompt)) else opening(tokenizer, "\n")
    except UserError:
        return tokenizer.decode([0])


@torch.inference_mode()
def block_loss(model: LanguageModel, text: Tensor, seq_len: int) -> float:
    """Mean loss a token, in nats, over consecutive blocks of `seq_len`, each read from the empty
    state."""
    device = model.embedding.weight.device
    whole = (len(text) - 1) // seq_len
    inputs = text[: whole * seq_len].view(whole, seq_len)
    targets = text[1 : whole * seq_len + 1].view(whole, seq_len)
    rows = max(1, EVAL_TOKENS // seq_len)
    parts = (
        list(zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True))
        if whole
        else []
    )
    if whole * seq_len < len(text) - 1:
        parts.append((text[None, whole * seq_len : -1], text[None, whole * seq_len + 1 :]))
    total = 0.0
    for x, y in parts:
        logits, _ = model(x.to(device))
        total += float(next_token_loss(logits, y.to(device)))
    return total / (len(text) - 1)


@torch.inference_mode()
def stream_loss(model: LanguageModel, text: Tensor, seq_len: int) -> float:
    """Mean loss a token, in nats, over the text read once from its start with the state carried.

    A state that grows keeps at most `seq_len` tokens, those of the chunk included. A model with a
    limited number of positions reads each chunk anew, after the half `seq_len` of tokens before it.
    """
    text = text.to(model.embedding.weight.device)
    parts = _stream(model, text, seq_len)
    total = sum(float(next_token_loss(logits, targets)) for logits, targets in parts)
    return total / (len(text) - 1)


def _stream(model: LanguageModel, text: Tensor, seq_len: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and targets of consecutive chunks."""
    end = len(text) - 1
    if model.max_len is not None:
        chunk = max(1, min(seq_len, model.max_len) // 2)
        for start in range(0, end, chunk):
            begin, stop = max(0, start - chunk), min(start + chunk, end)
            logits, _ = model(text[None, begin:stop])
            yield logits[:, start - begin :], text[None, start + 1 : stop + 1]
        return
    chunk = max(1, min(64, seq_len // 4)) if model.state_grows else STREAM_CHUNK
    state = None
    for start in range(0, end, chunk):
        stop = min(start + chunk, end)
        logits, state = model(text[None, start:stop], trim(state, max(1, seq_len - chunk)))
        yield logits, text[None, start + 1 : stop + 1]
