"""Beam search: the likeliest continuations of a prompt."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.decoding.replayed import ReplayedStep
from seqzoo.decoding.step import prepare
from seqzoo.models.language_model import LanguageModel, evaluating
from seqzoo.state import State, select


class Hypothesis(NamedTuple):
    """A continuation without the token that ends it, and its score: log-probability divided by
    length ** length_penalty, where the end counts as a token."""

    tokens: list[int]
    score: float


class _Beams(NamedTuple):
    """Unfinished continuations, of A rows of the prompt that go on and n beams of each."""

    rows: list[int]  # A indices of rows of the prompt
    scores: Tensor  # (A, n) log-probabilities; minus infinity where a beam has ended
    texts: Tensor  # (A, n, t) the tokens generated so far
    parents: Tensor  # (A, n) the beam each continues, of the step before


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

    Every step extends the `beams` likeliest continuations; one that ends while it is among them is
    a hypothesis. A row is finished when it has `beams` hypotheses and its best unfinished
    continuation scores no better than the worst of them; its states are then dropped. Where
    hypotheses are missing after `max_tokens`, or at the end of the model's positions, the
    unfinished continuations take their place.

    Args:
        prompt: (B, T) tokens, every row full.
        state: the state before the prompt.
        stop: the token that ends a continuation.
        length_penalty: 0 compares log-probabilities, which favours short continuations; 1 compares
            their mean over tokens (Wu et al. 2016, arXiv 1609.08144, section 7, has another form).
    """
    if model.max_len is not None:
        prompt = prompt[:, -model.max_len :]
        max_tokens = min(max_tokens, model.max_len - prompt.shape[1] + 1)
    B, device = len(prompt), prompt.device
    found: list[list[Hypothesis]] = [[] for _ in range(B)]
    scores = torch.zeros(B, 1, device=device)
    current = _Beams(list(range(B)), scores, prompt.new_zeros(B, 1, 0), prompt.new_zeros(B, 1))
    with evaluating(model):
        logits, state = model(prompt, state)
        logits = logits[:, None, -1]  # (A, n, V)
        reader = _Reader(model, state)
        for t in range(1, max_tokens + 1):
            n = logits.shape[1]
            current = _extend(current, logits, beams, stop, length_penalty, found)
            going = _unfinished(current, beams, length_penalty, found)
            if not going or t == max_tokens:
                break
            kept = torch.tensor(going, device=device)
            rows, scores, texts, parents = current
            current = _Beams([rows[a] for a in going], scores[kept], texts[kept], parents[kept])
            parents = (kept[:, None] * n + current.parents).flatten()
            after = reader.read(current.texts[..., -1].flatten(), parents, max_tokens - t)
            logits = after.view(len(going), -1, after.shape[-1])
    _fill_up(current, beams, length_penalty, found)
    return found


class _Reader:
    """Reads a token of each beam, by a prepared step where there is one.

    Args:
        state: before the first token.
    """

    def __init__(self, model: LanguageModel, state: State) -> None:
        self._model, self._state = model, state
        self._step: ReplayedStep | None = None

    def read(self, tokens: Tensor, parents: Tensor, left: int) -> Tensor:
        """Logits (N, V) after tokens (N,), where beam i continues beam `parents[i]` of the last
        call. `left`: calls there can be, this one counted."""
        N, step = len(tokens), self._step
        if step is not None and step.room and N <= step.rows < 2 * N:
            more = step.rows - N  # rows that nothing continues read anything
            step.reorder(F.pad(parents, (0, more)))
            return step(F.pad(tokens, (0, more)))[:N]
        state = self._state if step is None else step.state()
        state = select(state, parents)
        self._step = step = prepare(self._model, state, N, left)
        if step is not None:
            return step(tokens)
        after: Tensor
        after, self._state = self._model(tokens[:, None], state)
        return after[:, -1]


def _extend(
    current: _Beams,
    logits: Tensor,
    beams: int,
    stop: int,
    length_penalty: float,
    found: list[list[Hypothesis]],
) -> _Beams:
    """The `beams` likeliest continuations by one more token; those that end are added to
    `found`."""
    A, n, V = logits.shape
    t = current.texts.shape[2] + 1
    total = (current.scores[..., None] + logits.float().log_softmax(-1)).flatten(1)
    # Each beam can end in one way only, so at least half of twice as many go on.
    scores, index = total.topk(min(2 * beams, n * V))
    parents, token = index // V, index % V
    ended = token == stop
    texts = current.texts.gather(1, parents[..., None].expand(-1, -1, t - 1))
    likely = ended[:, :beams] & (scores[:, :beams] > -torch.inf)
    for a, rank in likely.nonzero().tolist():
        score = float(scores[a, rank]) / t**length_penalty
        found[current.rows[a]].append(Hypothesis(texts[a, rank].tolist(), score))
    order = ended.byte().argsort(dim=1, stable=True)[:, :beams]
    parents, token, ended = (x.gather(1, order) for x in (parents, token, ended))
    scores = scores.gather(1, order).masked_fill(ended, -torch.inf)
    texts = texts[torch.arange(A, device=order.device)[:, None], order]
    return _Beams(current.rows, scores, torch.cat((texts, token[..., None]), 2), parents)


def _unfinished(
    current: _Beams, beams: int, length_penalty: float, found: list[list[Hypothesis]]
) -> list[int]:
    """The rows of the current beams that can still improve on their hypotheses, of which the best
    `beams` are kept."""
    going = []
    length = current.texts.shape[2]
    for a, (row, best) in enumerate(zip(current.rows, current.scores[:, 0].tolist(), strict=True)):
        found[row] = sorted(found[row], key=lambda h: -h.score)[:beams]
        if len(found[row]) < beams or best / length**length_penalty > found[row][-1].score:
            going.append(a)
    return going


def _fill_up(
    current: _Beams, beams: int, length_penalty: float, found: list[list[Hypothesis]]
) -> None:
    """Take unfinished continuations where hypotheses are missing."""
    length = current.texts.shape[2]
    for row, scores, texts in zip(
        current.rows, current.scores.tolist(), current.texts.tolist(), strict=True
    ):
        for score, text in zip(scores, texts, strict=True):
            if len(found[row]) < beams and score > -float("inf"):
                found[row].append(Hypothesis(text, score / length**length_penalty))
        found[row].sort(key=lambda h: -h.score)
