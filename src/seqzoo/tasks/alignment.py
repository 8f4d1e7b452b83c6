"""The weights with which a model reads each source token while it generates the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from seqzoo import ops
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.models.language_model import LanguageModel, evaluating
from seqzoo.report import figures as look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SHOWN = 48  # tokens of the source, and of the target, in a map: more cannot be read
Array = np.ndarray[Any, Any]


class Alignment(NamedTuple):
    """The weight of each source token in each target token."""

    source: list[str]  # S tokens
    target: list[str]  # T tokens, the end included
    weights: dict[str, Array]  # (T, S) by layer, mean over heads


@torch.no_grad()
def align(
    model: LanguageModel,
    tokenizer: Tokenizer,
    source_tokenizer: Tokenizer,
    source: Array,
    target: Array,
) -> Alignment | None:
    """Read an encoded source (S,) and an encoded target (T,), and collect the weights.

    With an encoder they are those of the attention to the source, otherwise those of every
    operation that is a weighted sum over the past.

    Returns:
        None where no operation has weights on the source, as in an RNN that has only its state, and
        where the model has too few positions for the pair.
    """
    source = source[: model.max_source_len]
    if not len(source) or len(target) + 1 > model.positions_left(len(source) + model.reads_source):
        return None
    if model.reads_source:
        source = np.append(source, source_tokenizer.id("</s>"))
    device = model.embedding.weight.device
    sources, targets = (
        torch.from_numpy(ids.astype(np.int64))[None].to(device) for ids in (source, target)
    )
    with evaluating(model):
        prompt, state = model.start(sources, tokenizer.id("<s>"))
        # A growing state that began with the encoder's has the source in its past.
        apart = model.reads_source and not model.needs_equal_lengths
        with ops.watching("source" if apart else "past") as calls:
            model(torch.cat((prompt, targets), 1), state)
    T, S = len(target) + 1, len(source)
    layers = [call().float().abs().mean(0)[-T:, :S].cpu().numpy() for call in calls]
    if not layers:
        return None
    weights = {f"layer {i}": layer for i, layer in enumerate(layers)}
    if len(layers) > 1:
        weights = {"mean over layers": np.mean(layers, 0), **weights}
    return Alignment(
        source=[source_tokenizer.piece(int(i)) for i in source],
        target=[*(tokenizer.piece(int(i)) for i in target), "</s>"],
        weights=weights,
    )


@look.style()
def draw(found: Alignment, *, layers: bool = True) -> Figure:
    """A map for each layer, or one for their mean: source from left to right, target downwards.

    Only the first MAX_SHOWN tokens of either are shown. White is 0, black is the largest weight.
    """
    maps = list(found.weights.items())[: None if layers else 1]
    source, target = _labels(found.source), _labels(found.target)
    columns = min(3, len(maps))
    width, height = max(3.0, 0.24 * len(source) + 1.2), max(2.5, 0.24 * len(target) + 1.2)
    whole = look.new_figure(columns * width, -(-len(maps) // columns) * height)
    black = max(float(weights[:MAX_SHOWN, :MAX_SHOWN].max()) for _, weights in maps)
    greys: dict[str, Any] = {"cmap": "Greys", "vmin": 0, "vmax": black, "aspect": "auto"}
    panels = look.grid(whole, len(maps), columns)
    for axes, (name, weights) in zip(panels, maps, strict=True):
        shown = weights[:MAX_SHOWN, :MAX_SHOWN]
        image = look.heat_map(axes, shown, target, source, **greys)
        axes.set_title(name, fontsize=8)
    whole.colorbar(image, ax=panels, label="weight", aspect=40, fraction=0.05)
    sides = {"source": found.source, "target": found.target}
    if cut := [f"{len(t)} of the {side}" for side, t in sides.items() if len(t) > MAX_SHOWN]:
        whole.suptitle(f"the first {MAX_SHOWN} tokens of {' and '.join(cut)}", fontsize=8)
    return whole


def _labels(tokens: list[str]) -> list[str]:
    return [token.replace(" ", "▁") for token in tokens[:MAX_SHOWN]]
