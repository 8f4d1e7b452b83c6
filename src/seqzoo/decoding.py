"""One sampling loop for the whole zoo: read the prompt into the state, then step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from seqzoo.models.language_model import LanguageModel
from seqzoo.state import State, select, trim


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop: int | None = None,
    window: int | None = None,
) -> Iterator[Tensor]:
    """Continue each row of a prompt, a token at a time.

    Args:
        prompt: (B, T) tokens, T >= 1, every row full: rows of unlike lengths go in calls of their
            own.
        max_tokens: how many to make.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among the k likeliest only.
        top_p: sample among the fewest tokens that together have probability p.
        generator: source of randomness, on the CPU.
        stop: a token that ends its row; rows that ended repeat it, and all rows ended ends the
            loop.
        window: a state that grows keeps this many tokens.

    Yields:
        (B,) the next token of each row.
    """
    was_training = model.training
    model.eval()
    try:
        text, state = prompt, None
        rows = torch.arange(prompt.shape[0], device=prompt.device)  # those still going
        fresh = prompt
        for _ in range(max_tokens):
            logits, text, state = _read(model, fresh, text, state, window)
            token = sample(logits[:, -1].float(), temperature, top_k, top_p, generator)
            out = torch.full(
                (prompt.shape[0],), stop if stop is not None else 0, device=prompt.device
            )
            out[rows] = token
            yield out
            fresh = token[:, None]
            if stop is not None:
                going = token != stop
                if not going.any():
                    return
                if not going.all():
                    rows, fresh, text, state = (
                        rows[going],
                        fresh[going],
                        text[going],
                        select(state, going),
                    )
            text = torch.cat((text, fresh), 1)
    finally:
        model.train(was_training)


def _read(
    model: LanguageModel, fresh: Tensor, text: Tensor, state: State, window: int | None
) -> tuple[Tensor, Tensor, State]:
    """Logits after the fresh tokens. A model whose positions end starts over from the later half of
    what it holds."""
    limit = model.max_len
    if limit is not None:
        limit = min(limit, window or limit)  # positions beyond the window were never trained
        text = text[:, -limit:]
        if state is None:
            fresh = text
        elif text.shape[1] == limit:
            text = fresh = text[:, -max(1, limit // 2) :]
            state = None
    if state is not None and window is not None:
        state = trim(state, max(1, window - fresh.shape[1]))
    logits, state = model(fresh, state)
    return logits, text, state


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a token a row from logits (B, V); (B,)."""
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
