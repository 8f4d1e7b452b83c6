"""The figures of one inspected run, and those that show several runs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seqzoo.analysis.inspect.contexts import Array, Contexts
from seqzoo.analysis.inspect.measure import Findings
from seqzoo.report import figures as look
from seqzoo.report.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAP_WORDS = 32  # rows of the map of words


def figures(name: str, found: Findings) -> dict[str, Figure]:
    """A model's figures by name.

    `attention` is left out where no operation has weights, `contexts` where no word occurs twice.
    """
    maps = {"loss at row t by input at column s": found.sensitivity}
    drawn = {
        **curves([(name, found)]),
        "sensitivity": _maps(maps, found.tokens, name, "norm of dL_t / dx_s"),
        "embeddings": _embeddings(found, name),
    }
    if found.attention:
        heads = {layer: abs(weights).mean(0) for layer, weights in found.attention.items()}
        negative = any(w.min() < -1e-6 * abs(w).max() for w in found.attention.values())
        what = "size of the weight" if negative else "weight"
        drawn["attention"] = _maps(heads, found.tokens, name, f"{what}, mean over heads")
    if found.contexts.words:
        drawn["contexts"] = _contexts(found.contexts, name)
    return drawn


def curves(findings: Sequence[tuple[str, Findings]]) -> dict[str, Figure]:
    """The curves of several runs, each a name and its findings: `dependence` and `positions`."""
    return {"dependence": _dependence(findings), "positions": _positions(findings)}


@look.style()
def _dependence(findings: Sequence[tuple[str, Findings]]) -> Figure:
    """The gradient's norm by distance, as a share of that at distance 0."""
    colours = look.colours([name for name, _ in findings])
    whole = look.new_figure(10, 4.2)
    before, after = whole.subplots(1, 2, sharey=True)
    for name, found in findings:
        for axes, values in zip((before, after), found.dependence.values(), strict=True):
            shown = np.where(values > 0, values, np.nan) / values[0]
            only_last = not values[1:].any()
            label = f"{name} (0 but for the last token)" if only_last else name
            marker = "o" if only_last else None
            label = label if axes is before else f"_{name}"  # each once in the legend
            axes.plot(shown, color=colours[name], marker=marker, ms=3, label=label)
    for axes, title in ((before, "at initialisation"), (after, "trained")):
        axes.set(yscale="log", title=title, xlabel="distance T - t, tokens")
    before.set_ylabel("norm of dL_T / dx_t, relative to dL_T / dx_T")
    look.legend_below(whole, 3)
    return whole


@look.style()
def _positions(findings: Sequence[tuple[str, Findings]]) -> Figure:
    colours = look.colours([name for name, _ in findings])
    whole = look.new_figure(6.4, 4.2)
    axes = whole.subplots()
    for name, found in findings:
        middles, losses = _smooth(found.positions)
        axes.plot(middles, losses, color=colours[name], marker=".", label=name)
    axes.set(xscale="log", xlabel="position in the context, tokens", ylabel="loss, nats a token")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend()
    return whole


def _smooth(values: Array) -> tuple[Array, Array]:
    """Means over ever wider ranges of positions, each a quarter of an octave, and their middles."""
    positions = np.arange(1, len(values) + 1)
    ranges = np.floor(4 * np.log2(positions))
    means = [
        (np.exp(np.log(positions[ranges == each]).mean()), values[ranges == each].mean())
        for each in np.unique(ranges)
    ]
    middles, smoothed = zip(*means, strict=True)
    return np.array(middles), np.array(smoothed)


@look.style()
def _maps(maps: Mapping[str, Array], tokens: Sequence[str], title: str, label: str) -> Figure:
    """Maps (T, T) of a text, in logarithms over four powers of ten."""
    from matplotlib.colors import LogNorm

    columns = min(2, len(maps))
    labels = [visible(token) for token in tokens]
    whole = look.new_figure(6.2 * columns, 5.8 * -(-len(maps) // columns) + 0.3)
    for axes, (name, values) in zip(
        look.grid(whole, len(maps), columns), maps.items(), strict=True
    ):
        top = float(values.max()) or 1.0
        shown = np.where(values > 0, values, np.nan)
        look.heat_map(axes, shown, labels, labels, label, norm=LogNorm(top * 1e-4, top))
        axes.set_title(name)
    whole.suptitle(title)
    return whole


@look.style()
def _embeddings(found: Findings, name: str) -> Figure:
    """The embedding and the head's input, each in its two principal directions."""
    whole = look.new_figure(12, 6)
    whole.suptitle(name)
    pair = (("embedding", found.embeddings), ("input of the head", found.contextual))
    for axes, (title, (vectors, labels)) in zip(whole.subplots(1, 2), pair, strict=True):
        flat, share = principal(vectors)
        axes.scatter(*flat.T, s=2, alpha=0.3)
        names = [label.rpartition("[")[2].rstrip("]") or label for label in labels]
        axes.set(title=f"{title}: two directions, {100 * share:.0f} % of the variance")
        look.name_points(axes, flat, names)
    return whole


def principal(vectors: Array) -> tuple[Array, float]:
    """Coordinates (N, 2) along the two principal directions of (N, D), and their share of the
    variance."""
    centred = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-30))
    return left[:, :2] * sizes[:2], share


@look.style()
def _contexts(found: Contexts, name: str) -> Figure:
    """Distances by layer: means over words beside those of random tokens; and a map of words."""
    whole = look.new_figure(11, 6)
    left, right = whole.subplots(1, 2)
    at = range(len(found.stages))
    low, high = np.quantile(found.to_mean, [0.25, 0.75], axis=0)
    left.fill_between(at, low, high, alpha=0.2, lw=0, label="half of all words")
    left.plot(at, found.to_mean.mean(0), marker="o", label="a word's vectors to their mean")
    left.plot(at, found.between.mean(0), marker="o", ls=":", label="two occurrences of a word")
    left.plot(at, found.random, marker="o", ls="--", color="grey", label="two random tokens")
    left.set_xticks(at, found.stages, rotation=45, ha="right")
    left.set(ylabel="mean cosine distance", ylim=(0, None))
    left.legend()
    words = found.words[:MAP_WORDS]
    shown, label = found.to_mean[: len(words)], "mean cosine distance"
    look.heat_map(right, shown, words, found.stages, label, vmin=0, aspect="auto")
    right.set_title("a word's vectors to their mean, the most frequent words first", fontsize=9)
    whole.suptitle(f"{name}: how far a word's vectors differ between its contexts")
    return whole
