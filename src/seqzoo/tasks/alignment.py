"""Where a model looks in the source while it says the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqzoo import ops
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.models.language_model import LanguageModel, evaluating
from seqzoo.report import grid, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SEEN = 48  # tokens a map shows of either side: more cannot be read


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
        None where no operation weighs the source, as in an RNN that has only its state; and where
        the model has too few positions for the pair.
    """
    source = source[: model.longest_source]
    if not len(source) or len(target) + 1 > model.room(len(source) + model.reads_source):
        return None
    if model.reads_source:
        source = np.append(source, source_tokenizer.id("</s>"))
    device = model.embedding.weight.device
    read = torch.from_numpy(source.astype(np.int64))[None].to(device)
    said = torch.from_numpy(target.astype(np.int64))[None].to(device)
    with evaluating(model):
        prompt, state = model.begin(read, tokenizer.id("<s>"))
        # A state that grows and began with a source has that source in its past.
        apart = model.reads_source and not model.wants_one_length
        with ops.watching("source" if apart else "past") as calls:
            model(torch.cat((prompt, said), 1), state)
    T, S = said.shape[1] + 1, read.shape[1]
    layers = [_numpy(call().float().abs().mean(0)[-T:, :S]) for call in calls]
    if not layers:
        return None
    pieces = [source_tokenizer.piece(i) for i in read[0].tolist()]
    spoken = [*(tokenizer.piece(i) for i in said[0].tolist()), "</s>"]
    weights = {f"layer {i}": layer for i, layer in enumerate(layers)}
    if len(layers) > 1:
        weights = {"mean over layers": np.mean(layers, 0), **weights}
    return Alignment(pieces, spoken, weights)


@style()
def draw(seen: Alignment, *, layers: bool = True) -> Figure:
    """A map a layer, or of their mean alone: the source along the top, the target down the side; of
    either, the first SEEN tokens. White is nothing; black is 1, or the largest weight there is of
    operations that weigh by more."""
    from matplotlib.figure import Figure

    maps = list(seen.weights.items())[: None if layers else 1]
    source, target = _shown(seen.source), _shown(seen.target)
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    width, height = max(3.0, 0.24 * len(source) + 1.2), max(2.5, 0.24 * len(target) + 1.2)
    whole = Figure(figsize=(columns * width, rows * height), layout="constrained")
    black = max(1.0, *(float(weights.max()) for _, weights in maps))
    panels = grid(whole, len(maps), columns)
    for axes, (name, weights) in zip(panels, maps, strict=True):
        image = axes.imshow(weights[:SEEN, :SEEN], cmap="Greys", vmin=0, vmax=black, aspect="auto")
        axes.set_xticks(range(len(source)), source, rotation=90, fontsize=7)
        axes.set_yticks(range(len(target)), target, fontsize=7)
        axes.xaxis.tick_top()
        axes.grid(False)
        axes.set_title(name, fontsize=8)
    whole.colorbar(image, ax=panels, label="weight", aspect=40, fraction=0.05)
    if cut := [
        f"{len(side)} of the {what}"
        for what, side in zip(seen._fields, seen, strict=False)
        if len(side) > SEEN
    ]:
        whole.suptitle(f"the first {SEEN} tokens of {' and '.join(cut)}", fontsize=8)
    return whole


def _shown(pieces: list[str]) -> list[str]:
    return [piece.replace(" ", "▁") for piece in pieces[:SEEN]]


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.cpu().numpy())
