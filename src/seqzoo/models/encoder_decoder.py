"""Encoder and decoder: one stack of layers reads the source, another generates the target.

The decoder's first state joins them. `bridge=state`: the final state of the encoder (Sutskever et
al. 2014, arXiv 1409.3215). `bridge=attention`: for every layer of the decoder, the encoded source
as keys and values. With that state a decoder is a language model like any other.

B batch, S tokens of the source, T of the target, D width, M width of the encoded source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqzoo.config import values
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.mixers.cross_attention import Source
from seqzoo.models.language_model import LanguageModel, TokenModel, run_layers
from seqzoo.ops.tensors import to_device
from seqzoo.ops.watch import watch
from seqzoo.state import State, grows, leaves, rebuild


class Encoder(TokenModel):
    """One stack of layers; or two, of which the second reads backwards, with their outputs
    concatenated, as in Bahdanau et al. 2014 (arXiv 1409.0473, section 3.2).

    Args:
        embedding: of the source's tokens.
        norm_in: applied to the embedding.
        stacks: the layers of each direction.
        norms: applied to the output of each direction.
    """

    @checked()
    def __init__(
        self,
        *,
        embedding: nn.Embedding,
        norm_in: nn.Module,
        dropout: values.Dropout,
        stacks: Sequence[Sequence[nn.Module]],
        norms: Sequence[nn.Module],
    ) -> None:
        super().__init__(embedding, norm_in, dropout)
        self.stacks = nn.ModuleList(nn.ModuleList(layers) for layers in stacks)
        self.norms = nn.ModuleList(norms)

    def forward(self, tokens: Tensor) -> tuple[Tensor, State]:
        """Tokens (B, S), every row full, encoded (B, S, M); and the state of the first stack after
        the last token."""
        x = self.embed(tokens)
        encoded, states = [], []
        for direction, (layers, norm) in enumerate(zip(self.stacks, self.norms, strict=True)):
            assert isinstance(layers, nn.ModuleList)
            y, state = run_layers(layers, x.flip(1) if direction else x, None)
            encoded.append(norm(y.flip(1) if direction else y))
            states.append(state)
        return torch.cat(encoded, -1), states[0]

    @property
    def blocks(self) -> list[nn.Module]:
        return [layer for stack in self.stacks for layer in stack.children()]


class EncoderDecoder(LanguageModel):
    """A language model of the target, whose first state comes from the source.

    Args:
        bridge: `state` or `attention`.
        **decoder: the arguments of `LanguageModel`; with bridge=attention the layers that attend to
            the source have a method ``remember(encoded, valid)``.
    """

    reads_source = True

    @checked()
    def __init__(
        self, *, encoder: Encoder, bridge: Literal["attention", "state"], **decoder: Any
    ) -> None:
        super().__init__(**decoder)
        self.encoder, self.bridge = encoder, bridge
        self.needs_equal_lengths = bridge == "state" and self.state_grows

    def forward(
        self,
        tokens: Tensor,
        state: State = None,
        source: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Tensor, State]:
        """As `LanguageModel`, for tokens (B, T) of the target, after `state` or after a source
        (B, S), which `encode` reads."""
        if source is not None:
            state = self.encode(source, lengths)
        elif state is None:
            raise ValueError("a decoder needs a source: give one, or the state of encode(source)")
        return super().forward(tokens, state)

    def encode(self, source: Tensor, lengths: Sequence[int] | None = None) -> State:
        """The decoder's state before its first token.

        Rows of one length are encoded together and without padding, so that with any encoder the
        result for a row does not depend on the other rows.

        Args:
            source: (B, S) tokens, rows padded on the right.
            lengths: tokens of each of the B rows, at least 1; None: every row is full.

        Raises:
            ValueError: rows of different lengths whose states have different shapes.
        """
        B, S = source.shape
        sizes = [S] * B if lengths is None else list(lengths)
        groups = {
            n: to_device(torch.tensor([row for row in range(B) if sizes[row] == n]), source.device)
            for n in sorted(set(sizes))
        }
        encoded = [self.encoder(source[rows, :n]) for n, rows in groups.items()]
        order = torch.cat(list(groups.values()))
        back = order.argsort()  # from the order of the groups to that of the rows
        if self.bridge == "state":
            return _joined([state for _, state in encoded], back)
        y = torch.cat([F.pad(y, (0, 0, 0, S - y.shape[1])) for y, _ in encoded])[back]
        n_tokens = to_device(torch.tensor(sizes), source.device)[:, None]
        valid = torch.arange(S, device=source.device) < n_tokens
        remember: list[Any] = [getattr(layer, "remember", None) for layer in self.layers]
        return tuple(call and call(y, valid) for call in remember)

    def source_tokens(self, source: Tensor, end: int) -> Tensor:
        return torch.cat((source, torch.full_like(source[:, :1], end)), 1)

    def start(self, source: Tensor, first: int) -> tuple[Tensor, State]:
        return torch.full_like(source[:, :1], first), self.encode(source)

    def _state_after(self, token: Tensor) -> State:
        return self(token, self.encode(token))[1]

    def positions_left(self, source: int) -> float:
        if self.bridge == "state" or self.max_len is None:  # the target continues the positions
            return super().positions_left(source)
        return self.max_len if source <= self.max_len else 0

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.encoder.blocks, *self.layers]


def _joined(states: list[State], back: Tensor) -> State:
    """The states of groups of rows as one state, in the order of the rows."""
    if len(states) > 1 and grows(states[0]):
        raise ValueError(
            "rows of different lengths: the states of this family grow with every token, and those "
            "of such rows cannot stand in one tensor: give rows of one length, or build with "
            "bridge='attention'"
        )
    parts = zip(*map(leaves, states), strict=True)
    return rebuild(states[0], [torch.cat(part)[back] for part in parts])


class StepwiseState(NamedTuple):
    """What a stepwise decoder needs for its next token."""

    layers: State
    feedback: Tensor  # (B, D): the last output of the layers (bahdanau) or of the decoder (luong)
    source: Source  # keys (B, 1, S, D), values (B, 1, S, M)


class StepwiseDecoder(nn.Module):
    """A decoder's layers with one attention to the source at every step, whose result is an input
    of the layers or of their next step: the recurrent models with attention. x_t is the embedded
    token, s_t the output of the layers, h the encoded source.

    `bahdanau` (arXiv 1409.0473, section 3.1 and appendix A): the query is s_{t-1}.

        c_t = sum_s softmax_s(w^T tanh(W s_{t-1} + U h_s)) h_s        (eq. 4 to 6)
        s_t = layers(A [x_t; c_t])        y_t = tanh(C [s_t; c_t; x_t])

    `luong` (1508.04025, section 3.1 with the score `general`, eq. 5 and 7; input feeding, section
    3.3): the query is s_t.

        s_t = layers(A [x_t; y_{t-1}])    c_t = sum_s softmax_s(s_t^T W h_s) h_s
        y_t = tanh(C [c_t; s_t])

    Deviations: the layers are of any family; A maps their inputs to one vector of width D; s_t is
    normalised where the layers are residual; Bahdanau's maxout is a tanh, of s_t as in eq. 4, where
    the appendix has s_{t-1}; both start from the empty state, where Bahdanau's first state is
    computed from the encoder's.
    """

    @checked()
    def __init__(
        self,
        *,
        layers: Sequence[nn.Module],
        norm_out: nn.Module,
        attention: Literal["bahdanau", "luong"],
        dim: Count,
        encoded_dim: Count,
    ) -> None:
        super().__init__()
        self.layers, self.norm_out = nn.ModuleList(layers), norm_out
        self.attends_first = attention == "bahdanau"  # before the layers, with s_{t-1}
        self.key = nn.Linear(encoded_dim, dim, bias=False)
        if self.attends_first:
            self.query = nn.Linear(dim, dim)
            self.score = nn.Linear(dim, 1, bias=False)
        self.enter = nn.Linear(dim + (encoded_dim if self.attends_first else dim), dim)
        self.leave = nn.Linear(encoded_dim + dim * (2 if self.attends_first else 1), dim)

    def remember(self, encoded: Tensor, valid: Tensor) -> StepwiseState:
        """The state before the first token, as `CrossAttention.remember`."""
        keys = self.key(encoded)
        zeros = keys.new_zeros(len(keys), keys.shape[-1])
        source = Source(keys[:, None], encoded[:, None].to(keys.dtype), valid)
        return StepwiseState(None, zeros, source)

    def forward(
        self, x: Tensor, state: StepwiseState | None = None
    ) -> tuple[Tensor, StepwiseState]:
        if state is None:
            raise ValueError("a decoder needs a source: start from the state of encode(source)")
        step = self._attend_then_run if self.attends_first else self._run_then_attend
        ys, weights = [], []
        for x_t in x.unbind(1):
            y_t, weights_t, state = step(x_t, state)
            ys.append(y_t)
            weights.append(weights_t)
        watch(lambda: torch.stack([w[:1] for w in weights], 1), over="source")
        y = torch.stack(ys, 1)
        if self.attends_first:  # nothing depends on y, so all tokens at once
            y = torch.tanh(self.leave(y)).to(x.dtype)
        return y, state

    def _attend_then_run(
        self, x_t: Tensor, state: StepwiseState
    ) -> tuple[Tensor, Tensor, StepwiseState]:
        """Bahdanau's step: [s_t; c_t; x_t], the weights (B, S), the next state."""
        context, weights = self._attend(state.feedback, state.source)
        s_t, layers = self._run(x_t, context, state.layers)
        y_t = torch.cat((s_t, context.to(x_t.dtype), x_t), -1)
        return y_t, weights, StepwiseState(layers, s_t, state.source)

    def _run_then_attend(
        self, x_t: Tensor, state: StepwiseState
    ) -> tuple[Tensor, Tensor, StepwiseState]:
        """Luong's step: y_t, the weights (B, S), the next state."""
        s_t, layers = self._run(x_t, state.feedback, state.layers)
        context, weights = self._attend(s_t, state.source)
        y_t = torch.tanh(self.leave(torch.cat((context.to(x_t.dtype), s_t), -1))).to(x_t.dtype)
        return y_t, weights, StepwiseState(layers, y_t, state.source)

    def _run(self, x_t: Tensor, other: Tensor, state: State) -> tuple[Tensor, State]:
        """s_t = layers(A [x_t; other]) and the state of the layers."""
        inputs = self.enter(torch.cat((x_t, other.to(x_t.dtype)), -1)).to(x_t.dtype)
        s_t, state = run_layers(self.layers, inputs[:, None], state)
        return self.norm_out(s_t)[:, 0], state

    def _attend(self, query: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """The context c_t (B, M), and the weights (B, S)."""
        keys, encoded = source.k[:, 0], source.v[:, 0]
        if self.attends_first:
            scores = self.score(torch.tanh(self.query(query)[:, None] + keys))[..., 0]
        else:
            scores = (keys @ query[..., None].to(keys.dtype))[..., 0]
        weights = scores.float().masked_fill(~source.valid, float("-inf")).softmax(-1)
        return (weights[:, None].to(encoded.dtype) @ encoded)[:, 0], weights
