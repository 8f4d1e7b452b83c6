"""A source read by one stack of layers, a target said by another.

What joins them is the decoder's first state. `bridge=state`: the state in which the encoder ended
(Sutskever et al. 2014, arXiv 1409.3215). `bridge=attention`: for every layer of the decoder, the
encoded source as keys and values. From there on a decoder is a language model like any other.

B batch, S tokens of the source, T of the target, D width, M width of what the encoder made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.mixers.cross_attention import Source
from seqzoo.models.block import Dropout
from seqzoo.models.language_model import LanguageModel, through
from seqzoo.ops import watch
from seqzoo.state import State, grows, leaves, rebuild


class Encoder(nn.Module):
    """One stack of layers, or two, of which the second reads from the end and what they make is put
    side by side, as in Bahdanau et al. 2014 (arXiv 1409.0473, section 3.2).

    Args:
        embedding: of the source's tokens.
        stacks: the layers of each direction.
        norms: what each direction's output passes.
    """

    def __init__(
        self,
        *,
        embedding: nn.Embedding,
        norm_in: nn.Module,
        dropout: float,
        stacks: Sequence[Sequence[nn.Module]],
        norms: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.embedding, self.norm_in = embedding, norm_in
        self.dropout = Dropout(dropout)
        self.stacks = nn.ModuleList(nn.ModuleList(layers) for layers in stacks)
        self.norms = nn.ModuleList(norms)

    def forward(self, tokens: Tensor) -> tuple[Tensor, State]:
        """What was made of tokens (B, S), each row full: (B, S, M); and the first stack's state
        after the last of them."""
        x = self.dropout(self.norm_in(self.embedding(tokens)))
        encoded, states = [], []
        for direction, (layers, norm) in enumerate(zip(self.stacks, self.norms, strict=True)):
            y, state = through(layers, x.flip(1) if direction else x, None)  # type: ignore[arg-type]
            encoded.append(norm(y.flip(1) if direction else y))
            states.append(state)
        return torch.cat(encoded, -1), states[0]


class EncoderDecoder(LanguageModel):
    """A language model of the target whose first state comes from the source.

    Args:
        bridge: `state` or `attention`.
        **decoder: as `LanguageModel`; with bridge=attention each of its layers that attends has a
            method ``remember(encoded, valid)``.
    """

    reads_source = True

    def __init__(self, *, encoder: Encoder, bridge: str, **decoder: Any) -> None:
        super().__init__(**decoder)
        self.encoder, self.bridge = encoder, bridge
        self.wants_one_length = bridge == "state" and self.state_grows

    def forward(
        self,
        tokens: Tensor,
        state: State = None,
        source: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Tensor, State]:
        """Read tokens (B, T) after `state`, or after encoding a source: as `LanguageModel`."""
        if source is not None:
            state = self.encode(source, lengths)
        elif state is None:
            raise ValueError("a decoder begins with a source: give one, or the state of encode()")
        return super().forward(tokens, state)

    def encode(self, source: Tensor, lengths: Sequence[int] | None = None) -> State:
        """The decoder's state before its first token.

        Rows of one length are read together and without padding, so that no row sees what it was
        batched with, whatever the encoder is.

        Args:
            source: (B, S) tokens, rows padded on the right.
            lengths: of the B rows, each 1 at least; None: every row is full.

        Raises:
            ValueError: rows of unlike lengths whose states cannot stand in one tensor.
        """
        B, S = source.shape
        sizes = [S] * B if lengths is None else list(lengths)
        groups = {
            n: torch.tensor([row for row in range(B) if sizes[row] == n], device=source.device)
            for n in sorted(set(sizes))
        }
        read = [self.encoder(source[rows, :n]) for n, rows in groups.items()]
        order = torch.cat(list(groups.values()))
        back = order.argsort()  # from the order of the groups to that of the rows
        if self.bridge == "state":
            states = [state for _, state in read]
            if len(states) > 1 and grows(states[0]):
                raise ValueError(
                    "the states of rows of unlike lengths cannot stand in one tensor, as this "
                    "family's grow with what was read: give rows of one length, or build with "
                    "bridge='attention'"
                )
            parts = zip(*map(leaves, states), strict=True)
            return rebuild(states[0], [torch.cat(part)[back] for part in parts])
        encoded = torch.cat([F.pad(y, (0, 0, 0, S - y.shape[1])) for y, _ in read])[back]
        valid = torch.arange(S, device=source.device) < torch.tensor(
            sizes, device=source.device
        ).unsqueeze(1)
        begin: list[Any] = [getattr(layer, "remember", None) for layer in self.layers]
        return tuple(remember and remember(encoded, valid) for remember in begin)

    def begin(self, source: Tensor, first: int) -> tuple[Tensor, State]:
        return torch.full_like(source[:, :1], first), self.encode(source)

    def room(self, source: int) -> float:
        if self.bridge == "state" or self.max_len is None:  # positions go on from the source's
            return super().room(source)
        return self.max_len if source <= self.max_len else 0

    @property
    def blocks(self) -> list[nn.Module]:
        return [*(layer for stack in self.encoder.stacks for layer in stack), *self.layers]  # type: ignore[attr-defined]


class FedState(NamedTuple):
    """What a fed stack of layers needs at its next step."""

    layers: State
    fed: Tensor  # (B, D): the last output of the layers (bahdanau), or what was made of it (luong)
    source: Source  # keys (B, 1, S, D), values (B, 1, S, M)


class Fed(nn.Module):
    """A decoder's layers, fed at every step with what attention makes of the source: the recurrent
    models with attention, one step after the other. x_t is the embedded token, s_t the output of
    the layers, h the encoded source.

    `bahdanau` (arXiv 1409.0473, section 3.1 and appendix A): attention asks with s_{t-1}.

        c_t = sum_s softmax_s(w^T tanh(W s_{t-1} + U h_s)) h_s        (eq. 4 to 6)
        s_t = layers(A [x_t; c_t])        y_t = tanh(C [s_t; c_t; x_t])

    `luong` (1508.04025, section 3.1 with the score `general`, eq. 5 and 7; input feeding, section
    3.3): attention asks with s_t.

        s_t = layers(A [x_t; y_{t-1}])    c_t = sum_s softmax_s(s_t^T W h_s) h_s
        y_t = tanh(C [c_t; s_t])

    Deviations: any layers stand for the RNN; A makes one vector of what it reads, which the RNN's
    own matrices then read; s_t is normalised where the layers are residual; Bahdanau's maxout is a
    tanh, of s_t as in eq. 4, where the appendix has s_{t-1}; both begin from the empty state, where
    Bahdanau's first one is made of the encoder's.
    """

    def __init__(
        self,
        *,
        layers: Sequence[nn.Module],
        norm_out: nn.Module,
        attention: str,
        dim: int,
        encoded_dim: int,
    ) -> None:
        super().__init__()
        self.layers, self.norm_out = nn.ModuleList(layers), norm_out
        self.asks_before = attention == "bahdanau"
        self.key = nn.Linear(encoded_dim, dim, bias=False)
        if self.asks_before:
            self.query = nn.Linear(dim, dim)
            self.score = nn.Linear(dim, 1, bias=False)
        self.enter = nn.Linear(dim + (encoded_dim if self.asks_before else dim), dim)
        self.leave = nn.Linear(encoded_dim + dim * (2 if self.asks_before else 1), dim)

    def remember(self, encoded: Tensor, valid: Tensor) -> FedState:
        """The state before the first token: what the encoder made (B, S, M), and whether each is a
        token (B, S)."""
        keys = self.key(encoded)
        fed = keys.new_zeros(len(keys), keys.shape[-1])
        return FedState(None, fed, Source(keys[:, None], encoded[:, None].to(keys.dtype), valid))

    def forward(self, x: Tensor, state: FedState | None = None) -> tuple[Tensor, FedState]:
        if state is None:
            raise ValueError("a decoder that attends to a source begins with encode(source)")
        inner, fed, source = state
        said, looked = [], []
        for x_t in x.unbind(1):
            context = fed
            if self.asks_before:
                context, weights = self._ask(fed, source)
            entering = self.enter(torch.cat((x_t, context.to(x.dtype)), -1)).to(x.dtype)
            s_t, inner = through(self.layers, entering[:, None], inner)
            fed = s_t = self.norm_out(s_t)[:, 0]
            if self.asks_before:
                said.append(torch.cat((s_t, context.to(x.dtype), x_t), -1))
            else:
                context, weights = self._ask(s_t, source)
                fed = torch.tanh(self.leave(torch.cat((context.to(x.dtype), s_t), -1))).to(x.dtype)
                said.append(fed)
            looked.append(weights)
        watch(lambda: torch.stack([weights[:1] for weights in looked], 1), of="source")
        y = torch.stack(said, 1)
        if self.asks_before:  # what is said feeds nothing: all at once
            y = torch.tanh(self.leave(y)).to(x.dtype)
        return y, FedState(inner, fed, source)

    def _ask(self, query: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """The context (B, M), and the weights (B, S)."""
        keys, values = source.k[:, 0], source.v[:, 0]
        if self.asks_before:
            scores = self.score(torch.tanh(self.query(query)[:, None] + keys))[..., 0]
        else:
            scores = (keys @ query[..., None].to(keys.dtype))[..., 0]
        weights = scores.float().masked_fill(~source.valid, float("-inf")).softmax(-1)
        return (weights[:, None].to(values.dtype) @ values)[:, 0], weights
