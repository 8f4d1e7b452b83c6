"""All measurements of one run: how the loss depends on earlier tokens, the weights of operations
that are weighted sums of values, losses by position, embeddings.

x_t is the embedded token t, L_t the loss in nats of predicting the token after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo import ops, tasks
from seqzoo.analysis.inspect.contexts import (
    ROWS_AT_ONCE,
    Array,
    Contexts,
    contexts,
    stage_outputs,
)
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build, build_keys
from seqzoo.report.text import visible
from seqzoo.runs.run import Run

MAP_TOKENS = 48  # tokens in a map: more cannot be read
MAX_WINDOWS = 1000  # of the validation text, for the loss by position and for words in contexts
MAX_LABELS = 400  # contextual embeddings in a figure


@dataclass(frozen=True)
class Findings:
    """What was measured, as arrays.

    Attributes:
        dependence: by `at initialisation` and `trained`: for each distance T - t the norm of
            dL_T/dx_t, mean over texts; L_T is the loss of the last token, x_t the embedding.
        positions: loss by position in the context, nats, mean over texts.
        tokens: the text of the maps, one item a token.
        attention: weights (H, T, T) by layer, of the operations that have any; for an operation on
            single channels, H is the channels.
        sensitivity: (T, T): norm of dL_t/dx_s, row t, column s.
        embeddings: (V, D), and a label each.
        contextual: (N, D), the head's input, and a label each.
        contexts: how far a word's vectors are apart in its contexts, by layer.
    """

    dependence: dict[str, Array]
    positions: Array
    tokens: list[str]
    attention: dict[str, Array]
    sensitivity: Array
    embeddings: tuple[Array, list[str]]
    contextual: tuple[Array, list[str]]
    contexts: Contexts


def measure(run: Run, *, length: int, texts: int) -> Findings:
    """Measure on `texts` evenly spread windows of the validation text, of `length` tokens each.

    The loss by position and the words in their contexts are measured on all windows one after the
    other, up to MAX_WINDOWS.

    Raises:
        UserError: too short a text; more tokens than positions.
    """
    model, tokenizer = run.model, run.tokenizer
    device = model.embedding.weight.device
    data = _validation_text(run, length)

    def windows(starts: Array) -> Tensor:  # (starts, length + 1)
        cut = np.stack([np.asarray(data[s : s + length + 1]) for s in starts])
        return torch.from_numpy(cut.astype(np.int64)).to(device)

    spread = windows(np.linspace(0, len(data) - length - 1, texts).astype(int))
    every = windows(np.arange(0, len(data) - length, length)[:MAX_WINDOWS])
    short = spread[:1, : min(length, MAP_TOKENS) + 1]
    torch.manual_seed(run.config["trainer"]["seed"])  # the weights with which the run began
    fresh = build(vocab_size=model.vocab_size, **build_keys(run.config)).to(device).eval()
    labels = [tokenizer.decode([i]) or f"<{i}>" for i in range(model.vocab_size)]
    return Findings(
        dependence={
            "at initialisation": _array(dependence(fresh, spread)),
            "trained": _array(dependence(model, spread)),
        },
        positions=_array(loss_by_position(model, every)),
        tokens=[tokenizer.decode([int(i)]) for i in short[0, :-1]],
        attention=attention_weights(model, short[:, :-1]),
        sensitivity=_array(sensitivity(model, short)),
        embeddings=(_array(model.embedding.weight), [visible(label) for label in labels]),
        contextual=contextual_embeddings(model, tokenizer, spread[:, :-1]),
        contexts=contexts(model, tokenizer, every[:, :-1]),
    )


def _validation_text(run: Run, length: int) -> Array:
    """The tokens of a run's validation text, of which windows of a length can be read."""
    task = run.config["task"]
    if run.model.max_len is not None and length > run.model.max_len:
        raise UserError(
            f"--length {length}: this model has {run.model.max_len} positions: give less"
        )
    data: Array = tasks.prepare(task, {"tokenizer": run.tokenizer}).val
    if len(data) < length + 1:
        raise UserError(f"--length {length}: the validation text has {len(data)} tokens: give less")
    return data


def dependence(model: LanguageModel, text: Tensor) -> Tensor:
    """Norm of dL_T/dx_t by the distance T - t from 0 up, mean over texts (B, T + 1): (T,)."""
    inputs, targets = text[:, :-1], text[:, -1]
    with _differentiable_embedding(model) as embedded:
        logits, _ = model(inputs)
        loss = F.cross_entropy(logits[:, -1].float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, embedded)
    mean: Tensor = gradient.float().norm(dim=-1).mean(0)
    return mean.flip(0)


def sensitivity(model: LanguageModel, text: Tensor) -> Tensor:
    """Norm of dL_t/dx_s, row t, column s, of one text (1, T + 1): (T, T)."""
    with _differentiable_embedding(model) as embedded:
        logits, _ = model(text[:, :-1])
        losses = F.cross_entropy(logits[0].float(), text[0, 1:], reduction="none")
        gradients = [torch.autograd.grad(loss, embedded, retain_graph=True)[0] for loss in losses]
    return torch.stack([gradient[0].norm(dim=-1) for gradient in gradients])


@contextmanager
def _differentiable_embedding(model: LanguageModel) -> Iterator[list[Tensor]]:
    """Collects the outputs of the embedding inside; each is a leaf that has a gradient."""
    outputs: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    hook = model.embedding.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


@torch.no_grad()
def attention_weights(model: LanguageModel, tokens: Tensor) -> dict[str, Array]:
    """The weights (H, T, T) of every operation that is a weighted sum of values, on tokens (1, T).

    Softmax attention computes them. Linear attention and wkv have them too, but compute them only
    here.
    """
    with ops.watching() as calls:
        model(tokens)
    return {f"layer {i}": _array(weights()) for i, weights in enumerate(calls)}


@torch.no_grad()
def loss_by_position(model: LanguageModel, text: Tensor) -> Tensor:
    """The loss in nats at each position, mean over texts (B, T + 1): (T,)."""
    total = torch.zeros(text.shape[1] - 1, device=text.device)
    for rows in torch.split(text, ROWS_AT_ONCE):
        logits, _ = model(rows[:, :-1])
        targets = rows[:, 1:].flatten()
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
        total += losses.view(len(rows), -1).sum(0)
    return total / len(text)


@torch.no_grad()
def contextual_embeddings(
    model: LanguageModel, tokenizer: Tokenizer, tokens: Tensor
) -> tuple[Array, list[str]]:
    """The head's input at some tokens of texts (B, T); the label of each ends in `[token]`, with
    the eight tokens before it."""
    with stage_outputs([model.norm_out]) as outputs:
        model(tokens)
    B, T, D = outputs[0].shape
    chosen = np.linspace(0, B * T - 1, min(MAX_LABELS, B * T)).astype(int)
    labels = []
    for row, t in zip(*np.divmod(chosen, T), strict=True):
        before = tokenizer.decode([int(i) for i in tokens[row, max(0, t - 8) : t]])
        labels.append(f"{visible(before)}[{visible(tokenizer.decode([int(tokens[row, t])]))}]")
    return _array(outputs[0].reshape(B * T, D)[torch.from_numpy(chosen)]), labels


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.asarray(tensor.detach().float().cpu().numpy())
