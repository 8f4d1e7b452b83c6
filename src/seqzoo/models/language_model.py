"""Tokens in, logits out, a state in between."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.config import values
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Flag
from seqzoo.models.block import NORMS, Dropout
from seqzoo.state import State, grows, leaves


class Position(NamedTuple):
    """How many tokens were read."""

    position: Tensor  # (B,): of the next token


class PositionEmbedding(nn.Module):
    """Adds a vector a position: learned (GPT-2), or sinusoidal (Vaswani et al. 2017, section 3.5).

    A mixer like any other, whose state is the number of tokens read.

    Args:
        max_len: positions there are; reading more is a ValueError. On CUDA, and compiled, it is one
            for a first chunk, and for a later one a failed assertion, as nothing is fetched.
    """

    @checked()
    def __init__(
        self, *, dim: Count, kind: Literal["learned", "sinusoidal"], max_len: Count
    ) -> None:
        super().__init__()
        self.max_len = max_len
        if kind == "learned":
            self.table = nn.Parameter(torch.randn(max_len, dim) * 0.02)
            self.table.no_decay = True  # type: ignore[attr-defined]  # as embeddings
        else:
            angles = torch.arange(max_len)[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
            table = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :dim]
            table = (
                table * 0.02 * 2**0.5
            )  # as large as the token embedding; unscaled it is 35 times larger
            self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, state: Position | None = None) -> tuple[Tensor, Position]:
        B, T, _ = x.shape
        zero = torch.zeros(B, dtype=torch.long, device=x.device)
        first = zero if state is None else state.position
        if state is None:
            if self.max_len < T:
                raise self._too_many(T)
            return x + self.table[:T], Position(first + T)
        positions = first[:, None] + torch.arange(T, device=x.device)  # (B, T)
        try:
            return x + self.table[positions], Position(first + T)
        except IndexError:
            raise self._too_many(int(first.max()) + T) from None

    def _too_many(self, tokens: int) -> ValueError:
        return ValueError(
            f"{tokens} tokens are more than the {self.max_len} positions this model has: "
            f"build it with max_len={tokens}, or with position=rope"
        )


def run_layers(layers: nn.ModuleList, x: Tensor, state: State) -> tuple[Tensor, State]:
    """The output (B, T, D) of a stack of layers for x (B, T, D), and the states after the last
    token.

    Raises:
        ValueError: a state with another number of rows than x.
    """
    if rows := {len(leaf) for leaf in leaves(state)} - {len(x)}:
        raise ValueError(
            f"a state of {rows.pop()} rows for {len(x)} rows of tokens: give the state that these "
            "rows left, or choose rows of it with seqzoo.state.select"
        )
    after: list[State] = []
    handed: dict[type, list[Tensor]] = {}  # by a mixer to the next of its class, besides x
    for layer, before in zip(layers, state or (None,) * len(layers), strict=True):
        kind: Any = getattr(layer, "hands_on", None)
        x, new, *more = layer(x, before, *handed.get(kind, ()))
        if kind is not None:
            handed[kind] = more
        after.append(new)
    return x, tuple(after)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside: no dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class TokenModel(nn.Module, ABC):
    """What every architecture has: embedded tokens are read by layers, and a state is carried.

    Attributes:
        reads_source: whether an encoder reads the source.
        needs_equal_lengths: whether the sources of a batch must have one length.
        reads_both_ways: whether all tokens have to be read in one call, without a state.
    """

    reads_source = False
    needs_equal_lengths = False
    reads_both_ways = False

    def __init__(self, embedding: nn.Embedding, norm_in: nn.Module, dropout: float) -> None:
        super().__init__()
        self.embedding, self.norm_in, self.dropout = embedding, norm_in, Dropout(dropout)

    def embed(self, tokens: Tensor) -> Tensor:
        """What the layers read: (B, T, D) for tokens (B, T)."""
        x: Tensor = self.dropout(self.norm_in(self.embedding(tokens)))
        return x

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Every layer, each to be compiled on its own."""

    @torch.no_grad()
    def example_state(self) -> State:
        """A state after one token, whose structure is that of every later one."""
        one = torch.zeros(1, 1, dtype=torch.long, device=self.embedding.weight.device)
        with evaluating(self):
            return self._state_after(one)

    def _state_after(self, token: Tensor) -> State:
        state: State = self(token)[1]
        return state

    @property
    def state_grows(self) -> bool:
        """Whether the state grows with every token, as a cache of keys and values does."""
        return grows(self.example_state())

    def n_parameters(self) -> int:
        """The number of trainable parameters; a tied matrix counts once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class LanguageModel(TokenModel):
    """Embedding, layers that each map ``(x, state)`` to ``(y, state)``, and a head over the
    vocabulary.

    Args:
        layers: blocks and other mixers of width `dim`, in order.
        tie_embeddings: use the embedding's matrix as the head's.
        norm_in: a layer norm after the embedding (RWKV's ln0).
        norm_out: a norm before the head; a plain stack of recurrent layers has none.
        norm: of the head, `layer` or `rms`.
        max_len: tokens that can be read from an empty state, where positions end.
    """

    @checked()
    def __init__(
        self,
        *,
        vocab_size: Count,
        dim: Count,
        layers: Sequence[nn.Module],
        dropout: values.Dropout,
        tie_embeddings: Flag,
        norm_in: Flag,
        norm_out: Flag,
        norm: Literal["layer", "rms"],
        max_len: Count | None,
    ) -> None:
        norm_of_embedding = nn.LayerNorm(dim) if norm_in else nn.Identity()
        super().__init__(nn.Embedding(vocab_size, dim), norm_of_embedding, dropout)
        self.vocab_size, self.max_len = vocab_size, max_len
        self.layers = nn.ModuleList(layers)
        head = nn.Linear(dim, vocab_size, bias=False)
        self.norm_out = NORMS[norm](dim, head) if norm_out else nn.Identity()
        self.head = head
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Logits (B, T, V) of the token after each of `tokens` (B, T), read after `state`; and the
        state after the last."""
        x, state = run_layers(self.layers, self.embed(tokens), state)
        return self.head(self.norm_out(x)), state

    def source_tokens(self, source: Tensor, end: int) -> Tensor:
        """What is read of sources (B, S): here the sources alone; an encoder also reads their
        `end`."""
        return source

    def start(self, source: Tensor, first: int) -> tuple[Tensor, State]:
        """Prompt and initial state for decoding a target after `source` (B, S), every row full; the
        prompt ends with the token `first`."""
        return torch.cat((source, torch.full_like(source[:, :1], first)), 1), None

    def positions_left(self, source: int) -> float:
        """How many tokens can be read after a source of `source` tokens."""
        return math.inf if self.max_len is None else self.max_len - source

    @property
    def max_source_len(self) -> int | None:
        """How many tokens of a source can be read, without its end token: of a limited number of
        positions half, if the target shares them. None: no limit."""
        if self.max_len is None:
            return None
        shared = self.positions_left(self.max_len) == 0
        return max(1, (self.max_len // 2 if shared else self.max_len) - 1)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.layers)
