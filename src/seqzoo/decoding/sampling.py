"""Sampling: continue a prompt token by token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from seqzoo.decoding.replayed import ReplayedStep
from seqzoo.decoding.step import TYPES, Types, prepare
from seqzoo.errors import UserError, unknown
from seqzoo.models.language_model import LanguageModel, evaluating
from seqzoo.state import State, grows, select, trim


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    state: State = None,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop: int | None = None,
    window: int | None = None,
    weights: str = "float32",
    kv_cache: str = "float32",
) -> Iterator[Tensor]:
    """Continue each row of a prompt, token by token.

    Args:
        prompt: (B, T) tokens, T >= 1, every row full; rows of different lengths need one call each.
        state: the state before the prompt.
        max_tokens: tokens to generate at most.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest tokens that together have probability p.
        generator: source of randomness, on the CPU.
        stop: the token that ends its row. Rows that have ended repeat it; the loop ends when all
            rows have.
        window: tokens to keep of a state that grows.
        weights: the type in which the weights are read for each generated token: float32, bfloat16
            or int8. The prompt is read in the model's own.
        kv_cache: the type in which keys and values are kept for it, of the same ones.

    Yields:
        (B,) the next token of each row.

    Raises:
        UserError: no such type; fewer bits, and no step can be prepared for them: see
            `seqzoo.decoding.step.prepare`; or more tokens than a window holds.
    """
    B, device = prompt.shape[0], prompt.device
    unread, text = prompt, prompt  # of the rows that are still read, which `rows` lists
    rows = torch.arange(B, device=device)
    going = torch.ones(B, dtype=torch.bool, device=device)  # of those: the ones that have not ended
    # Tokens that can be read after the prompt before a window cuts a state that grows.
    uncut = 0 if window is None or state is not None else window - prompt.shape[1]
    step, types = None, Types(weights, kv_cache)
    for what, kind in types._asdict().items():
        if kind not in TYPES:
            raise unknown(what, kind, TYPES)
    with evaluating(model):
        for generated in range(max_tokens):
            if step is not None and step.room:
                logits = step(unread[:, 0])
            else:
                state = step.state() if step is not None else state
                logits, text, state = _read(model, unread, text, state, window)
                logits = logits[:, -1]
                left = max_tokens - generated - 1
                step = _prepared(model, text, state, window, uncut - generated, left, types)
            token = unread.new_full((len(rows),), 0 if stop is None else stop)
            token[going] = sample(logits[going].float(), temperature, top_k, top_p, generator)
            tokens = torch.full((B,), 0 if stop is None else stop, device=device)
            tokens[rows] = token
            yield tokens
            unread = token[:, None]
            if stop is not None:
                going = token != stop
                if not going.any():
                    return
                if 2 * going.sum() <= len(going) or step is None and not going.all():
                    state, step = select(step.state() if step is not None else state, going), None
                    rows, unread, text = rows[going], unread[going], text[going]
                    going = going[going]
            if model.max_len is not None:
                text = torch.cat((text, unread), 1)


def _prepared(
    model: LanguageModel,
    text: Tensor,
    state: State,
    window: int | None,
    uncut: int,
    tokens: int,
    types: Types,
) -> ReplayedStep | None:
    """A prepared step for the next tokens, as many as there are positions for; a state that grows
    is moved to more memory after as many as it has, and has none once its window cuts it."""
    read = text.shape[1]
    if model.max_len is not None:
        tokens = min(tokens, min(model.max_len, window or model.max_len) - 1 - read)
    elif window is not None and grows(state):
        if types.narrow() and tokens > uncut:
            raise UserError(
                f"{types.narrow()}: a prompt and its continuation may have {window + 1} tokens "
                "together, as then the model's state is cut: ask for fewer, or use float32"
            )
        tokens = min(tokens, uncut)
    if grows(state):
        tokens = min(tokens, max(1024, read))
    return prepare(model, state, len(text), tokens, types)


def _read(
    model: LanguageModel, unread: Tensor, text: Tensor, state: State, window: int | None
) -> tuple[Tensor, Tensor, State]:
    """Logits after the unread tokens, the text that the state holds, and the state. A model whose
    positions are used up reads the later half of its text anew."""
    limit = model.max_len
    if limit is not None:
        limit = min(limit, window or limit)  # positions after the window had no training
        text = text[:, -limit:]
        if state is None:
            unread = text
        elif text.shape[1] == limit:
            text = unread = text[:, -max(1, limit // 2) :]
            state = None
    if state is not None and window is not None:
        state = trim(state, max(1, window - unread.shape[1]))
    logits, state = model(unread, state)
    return logits, text, state


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token (B,) for each row of logits (B, V); arguments as in `generate`."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1).cpu()
    if top_k is not None or top_p is not None:
        ranked, index = probabilities.sort(-1, descending=True)
        if top_k is not None:
            ranked[:, top_k:] = 0
        if top_p is not None:  # drop a token when those before it already reach p
            ranked[(ranked.cumsum(-1) - ranked) >= top_p * ranked.sum(-1, keepdim=True)] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, index, ranked)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
