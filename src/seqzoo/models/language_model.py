"""Tokens in, logits out, a state in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqzoo.models.block import NORMS, Dropout
from seqzoo.state import State, grows


class Position(NamedTuple):
    """How much was read."""

    position: Tensor  # (B,): of the next token


class PositionEmbedding(nn.Module):
    """Adds a vector a position: learned (GPT-2), or sinusoidal (Vaswani et al. 2017, section 3.5).

    A mixer like any other: its state is the number of tokens read. Beyond `max_len` there is
    nothing it knows.
    """

    def __init__(self, *, dim: int, kind: str, max_len: int) -> None:
        super().__init__()
        self.max_len = max_len
        if kind == "learned":
            self.table = nn.Parameter(torch.randn(max_len, dim) * 0.02)
            self.table.no_decay = True  # type: ignore[attr-defined]  # an embedding; see optim.py
        else:
            angles = torch.arange(max_len)[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
            table = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :dim]
            table = table * 0.02 * 2**0.5  # as large as the token embedding, not 35 times larger
            self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, state: Position | None = None) -> tuple[Tensor, Position]:
        B, T, _ = x.shape
        first = (
            torch.zeros(B, dtype=torch.long, device=x.device) if state is None else state.position
        )
        end = T if state is None else int(first.max()) + T
        if end > self.max_len:
            raise ValueError(
                f"{end} tokens are more than the {self.max_len} positions this model has: "
                f"build it with max_len={end}, or with position=rope"
            )
        if state is None:
            return x + self.table[:T], Position(first + T)
        return x + self.table[first[:, None] + torch.arange(T, device=x.device)], Position(
            first + T
        )


def through(layers: nn.ModuleList, x: Tensor, state: State) -> tuple[Tensor, State]:
    """x (B, T, D) through every layer in turn, and the states after them."""
    after: list[State] = []
    handed: list[Tensor] = []  # what a layer gives the next one beside x
    for layer, before in zip(layers, state or (None,) * len(layers), strict=True):
        x, new, *handed = layer(x, before, *handed)
        after.append(new)
    return x, tuple(after)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, nothing is dropped out."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class LanguageModel(nn.Module):
    """Embedding, layers that each map ``(x, state)`` to ``(y, state)``, and a head over the
    vocabulary.

    Args:
        layers: blocks and other mixers of width `dim`, in order.
        tie_embeddings: use the embedding's matrix as the head's.
        norm_in: a layer norm after the embedding (RWKV's ln0).
        norm_out: a norm before the head; a plain stack of recurrent layers has none.
        norm: its kind, `layer` or `rms`.
        max_len: the most tokens it can read from one empty state; None where there is no end.
    """

    reads_source = False  # whether a source is read apart, by an encoder
    wants_one_length = False  # whether only sources of one length can be read together

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        layers: Sequence[nn.Module],
        dropout: float,
        tie_embeddings: bool,
        norm_in: bool,
        norm_out: bool,
        norm: str,
        max_len: int | None,
    ) -> None:
        super().__init__()
        self.vocab_size, self.max_len = vocab_size, max_len
        self.embedding = nn.Embedding(vocab_size, dim)
        self.norm_in = nn.LayerNorm(dim) if norm_in else nn.Identity()
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.norm_out = NORMS[norm](dim) if norm_out else nn.Identity()
        self.head = nn.Linear(dim, vocab_size, bias=False)
        if tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Read tokens (B, T) after `state`; logits (B, T, V) for each next token, and the state
        after the last."""
        x = self.dropout(self.norm_in(self.embedding(tokens)))
        x, state = through(self.layers, x, state)
        return self.head(self.norm_out(x)), state

    def begin(self, source: Tensor, first: int) -> tuple[Tensor, State]:
        """What to read, and after which state, to say what follows a source (B, S) of full rows;
        the token `first` comes before it."""
        return torch.cat((source, torch.full_like(source[:, :1], first)), 1), None

    def room(self, source: int) -> float:
        """How many tokens can be read after a source of that many: what positions are left."""
        return math.inf if self.max_len is None else self.max_len - source

    @property
    def longest_source(self) -> int | None:
        """How many tokens of a source are read at most, its end aside: where positions end, half of
        them if the target shares them. None: there is no end."""
        if self.max_len is None:
            return None
        shared = self.room(self.max_len) == 0
        return max(1, (self.max_len // 2 if shared else self.max_len) - 1)

    @property
    def blocks(self) -> list[nn.Module]:
        """Every layer: what is compiled."""
        return list(self.layers)

    @torch.no_grad()
    def example_state(self) -> State:
        """A state after one token: its structure is that of every later one."""
        one = torch.zeros(1, 1, dtype=torch.long, device=self.embedding.weight.device)
        with evaluating(self):
            return self(one, None, *[one] * self.reads_source)[1]

    @property
    def state_grows(self) -> bool:
        """Whether the state grows with what was read, as a cache of keys and values does."""
        return grows(self.example_state())

    def n_parameters(self) -> int:
        """Trainable numbers, each tied matrix once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
