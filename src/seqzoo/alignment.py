"""Where a model looks in the source while it says the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqzoo import ops
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.models.language_model import LanguageModel
from seqzoo.report import grid, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Alignment(NamedTuple):
    """How much of each source token is in what was said: rows are the target's tokens."""

    source: list[str]  # S pieces
    target: list[str]  # T pieces, the end included
    weights: dict[str, np.ndarray]  # (T, S) by layer, mean over heads


@torch.no_grad()
def align(
    model: LanguageModel,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    source: np.ndarray,
    target: np.ndarray,
) -> Alignment | None:
    """Read an encoded source, say an encoded target, and see the weights: of the attention to the
    source where there is an encoder, else of whatever operation weighs the past.

    Returns:
        None where no operation weighs anything, as in an RNN that has only its state.
    """
    if not len(source):
        return None
    device = model.embedding.weight.device
    read = torch.from_numpy(source.astype(np.int64))[None].to(device)
    if model.reads_source:
        end = torch.full_like(read[:, :1], source_tokenizer.id("</s>"))
        read = torch.cat((read, end), 1)
    prompt, state = model.begin(read, tokenizer.id("<s>"))
    said = torch.from_numpy(target.astype(np.int64))[None].to(device)
    training = model.training
    model.eval()
    with ops.watching("source" if model.reads_source else "past") as calls:
        model(torch.cat((prompt, said), 1), state)
    model.train(training)
    T, S = said.shape[1] + 1, read.shape[1]
    layers = [_numpy(call().float().abs().mean(0)[-T:, :S]) for call in calls]
    if not layers:
        return None
    pieces = [source_tokenizer.decode([int(i)]) or "</s>" for i in read[0]]
    spoken = [tokenizer.decode([int(i)]) for i in said[0]] + ["</s>"]
    weights = {f"layer {i}": layer for i, layer in enumerate(layers)}
    if len(layers) > 1:
        weights = {"mean over layers": np.mean(layers, 0), **weights}
    return Alignment(pieces, spoken, weights)


@style()
def draw(seen: Alignment) -> Figure:
    """A map a layer: the source along the top, the target down the side."""
    from matplotlib.figure import Figure

    columns = min(3, len(seen.weights))
    rows = -(-len(seen.weights) // columns)
    width = max(3.0, 0.24 * len(seen.source) + 1.2)
    height = max(2.5, 0.24 * len(seen.target) + 1.2)
    whole = Figure(figsize=(columns * width, rows * height), layout="constrained")
    for axes, (name, weights) in zip(
        grid(whole, len(seen.weights), columns), seen.weights.items(), strict=True
    ):
        axes.imshow(weights, cmap="Greys", vmin=0, aspect="auto")
        axes.set_xticks(range(len(seen.source)), _shown(seen.source), rotation=90, fontsize=7)
        axes.set_yticks(range(len(seen.target)), _shown(seen.target), fontsize=7)
        axes.xaxis.tick_top()
        axes.grid(False)
        axes.set_title(name, fontsize=8)
    return whole


def _shown(pieces: list[str]) -> list[str]:
    return [piece.strip() or "␣" for piece in pieces]


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.cpu().numpy())
