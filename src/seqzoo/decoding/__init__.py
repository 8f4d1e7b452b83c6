"""One sampling loop and one beam search for the whole zoo: read the prompt into the state, then
step. Of the state they know that its rows can be selected; a decoder's holds its source too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from seqzoo.models.language_model import LanguageModel, evaluating
from seqzoo.state import State, select, trim


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
) -> Iterator[Tensor]:
    """Continue each row of a prompt, a token at a time.

    Args:
        prompt: (B, T) tokens, T >= 1, every row full: rows of unlike lengths go in calls of their
            own.
        state: what was read before the prompt.
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
    with evaluating(model):
        text = prompt
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


class Hypothesis(NamedTuple):
    """What a beam said, without the token that ends it, and its score: log-probability divided by
    length ** length_penalty, where the end counts as a token."""

    tokens: list[int]
    score: float


@torch.inference_mode()
def beam_search(
    model: LanguageModel,
    prompt: Tensor,
    state: State = None,
    *,
    beams: int,
    max_tokens: int,
    stop: int,
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """The likeliest continuations of each row of a prompt, `beams` of them, best first.

    At every step the `beams` likeliest beginnings go on; one that ends while it is among them is a
    hypothesis. A row is over when it has `beams` hypotheses and its best beginning is no better
    than the worst of them; its states are then let go. What has not ended after `max_tokens`
    counts as it is, where hypotheses are missing; a model whose positions end makes no more than
    they hold.

    Args:
        prompt: (B, T) tokens, every row full.
        state: what was read before the prompt.
        stop: the token that ends a continuation.
        length_penalty: 0 compares log-probabilities, which favours short ones; 1 their mean a token
            (Wu et al. 2016, arXiv 1609.08144, section 7, has another form).
    """
    device = prompt.device
    found: list[list[Hypothesis]] = [[] for _ in range(len(prompt))]
    rows = list(range(len(prompt)))  # those that still go on: A of them
    if model.max_len is not None:
        prompt = prompt[:, -model.max_len :]
        max_tokens = min(max_tokens, model.max_len - prompt.shape[1] + 1)
    with evaluating(model):
        logits, state = model(prompt, state)
        logits = logits[:, None, -1]  # (A, n, V), n beams: at first the prompt alone
        scores = torch.zeros(len(prompt), 1, device=device)  # (A, n)
        texts = prompt.new_zeros(len(prompt), 1, 0)  # (A, n, t)
        for t in range(1, max_tokens + 1):
            A, n, V = logits.shape
            total = (scores[..., None] + logits.float().log_softmax(-1)).flatten(1)
            # Each beam ends in one way only, so that of twice as many `beams` go on at least.
            scores, index = total.topk(min(2 * beams, n * V))
            beam, token = index // V, index % V
            ended = token == stop
            texts = texts.gather(1, beam[..., None].expand(-1, -1, t - 1))
            likely = ended[:, :beams] & (scores[:, :beams] > -torch.inf)
            for a, rank in likely.nonzero().tolist():
                score = float(scores[a, rank]) / t**length_penalty
                found[rows[a]].append(Hypothesis(texts[a, rank].tolist(), score))
            order = ended.byte().argsort(dim=1, stable=True)[:, :beams]
            beam, token, ended = (x.gather(1, order) for x in (beam, token, ended))
            scores = scores.gather(1, order).masked_fill(ended, -torch.inf)
            texts = torch.cat(
                (texts[torch.arange(A, device=device)[:, None], order], token[..., None]), 2
            )

            going = []
            for a, (row, best) in enumerate(zip(rows, scores[:, 0].tolist(), strict=True)):
                found[row] = sorted(found[row], key=lambda h: -h.score)[:beams]
                enough = len(found[row]) == beams
                if not enough or best / t**length_penalty > found[row][-1].score:
                    going.append(a)
            if not going or t == max_tokens:
                break
            kept = torch.tensor(going, device=device)
            rows, scores, texts = [rows[a] for a in going], scores[kept], texts[kept]
            state = select(state, (kept[:, None] * n + beam[kept]).flatten())
            after, state = model(token[kept].reshape(-1, 1), state)
            logits = after.view(len(going), -1, V)
        for a, row in enumerate(rows):
            for score, text in zip(scores[a].tolist(), texts[a].tolist(), strict=True):
                if len(found[row]) < beams and score > -float("inf"):
                    found[row].append(Hypothesis(text, score / texts.shape[2] ** length_penalty))
            found[row].sort(key=lambda h: -h.score)
        return found
