"""Looking inside a trained language model: what its loss depends on, where it looks, what a
position is worth, what its tokens become.

Every figure is made the same way for every family: gradients are taken at the embedding, and an
operation that is linear in its values is asked for its weights by giving it the identity as values.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo import ops, report, tasks
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build
from seqzoo.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEN = 48  # tokens a map shows: more cannot be read
MOST = 1000
NAMED = 400  # contextual embeddings that are shown


@dataclass(frozen=True)
class Findings:
    """What was seen, as arrays.

    Attributes:
        dependence: by `at initialisation` and `trained`: for each distance T - t the norm of
            dL_T/dx_t, mean over texts; L_T is the loss of the last token, x_t the embedding.
        positions: loss by position in the context, nats, mean over texts.
        tokens: the text of the maps, a piece a token.
        attention: weights (H, T, T) by name, one a layer, of the operations that have any; heads of
            a channel-wise operation are channels, and its mean is shown.
        sensitivity: (T, T): norm of dL_t/dx_s, row t, column s.
        embeddings: (V, D), and a label each.
        contextual: (N, D), what the head reads, and a label each.
    """

    dependence: dict[str, np.ndarray]
    positions: np.ndarray
    tokens: list[str]
    attention: dict[str, np.ndarray]
    sensitivity: np.ndarray
    embeddings: tuple[np.ndarray, list[str]]
    contextual: tuple[np.ndarray, list[str]]


def look(run: Run, *, length: int, texts: int) -> Findings:
    """Read `texts` pieces of the validation text, of `length` tokens each, evenly spread; for the
    loss by position, one after the other, up to MOST of them.

    Raises:
        UserError: a run of another task; a text shorter than that; more tokens than positions.
    """
    if run.config["task"]["name"] != "charlm":
        raise UserError(f"{run.folder}: a run of task={run.config['task']['name']}, not of charlm")
    if run.model.max_len is not None and length > run.model.max_len:
        raise UserError(
            f"--length {length}: this model has {run.model.max_len} positions: give less"
        )
    data = tasks.prepare(run.config["task"], run.tokenizer).val
    if len(data) < length + 1:
        raise UserError(f"--length {length}: the validation text has {len(data)} tokens: give less")
    device = run.model.embedding.weight.device

    def windows(starts: np.ndarray) -> Tensor:  # (starts, length + 1)
        cut = np.stack([np.asarray(data[s : s + length + 1]) for s in starts])
        return torch.from_numpy(cut.astype(np.int64)).to(device)

    text = windows(np.linspace(0, len(data) - length - 1, texts).astype(int))
    every = windows(np.arange(0, len(data) - length, length)[:MOST])

    torch.manual_seed(run.config["trainer"]["seed"])  # as the run began
    fresh = build(vocab_size=run.model.vocab_size, **run.config["model"]).to(device).eval()
    few = text[:1, : min(length, SEEN) + 1]
    labels = [run.tokenizer.decode([i]) or f"<{i}>" for i in range(run.model.vocab_size)]
    return Findings(
        dependence={
            "at initialisation": dependence(fresh, text),
            "trained": dependence(run.model, text),
        },
        positions=loss_by_position(run.model, every),
        tokens=[run.tokenizer.decode([int(i)]) for i in few[0, :-1]],
        attention=attention_maps(run.model, few[:, :-1]),
        sensitivity=sensitivity(run.model, few),
        embeddings=(_numpy(run.model.embedding.weight), [_visible(label) for label in labels]),
        contextual=contextual(run.model, run.tokenizer, text[:, :-1]),
    )


# ---- what the loss depends on


def dependence(model: LanguageModel, text: Tensor) -> np.ndarray:
    """Norm of dL_T/dx_t by the distance T - t from 0 up, mean over texts (B, T + 1): (T,)."""
    inputs, targets = text[:, :-1], text[:, -1]
    with _embedded(model) as seen:
        logits, _ = model(inputs)
        loss = F.cross_entropy(logits[:, -1].float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen)
    return _numpy(gradient.float().norm(dim=-1).mean(0).flip(0))


def sensitivity(model: LanguageModel, text: Tensor) -> np.ndarray:
    """Norm of dL_t/dx_s, row t, column s, of one text (1, T + 1): (T, T)."""
    with _embedded(model) as seen:
        logits, _ = model(text[:, :-1])
        losses = F.cross_entropy(logits[0].float(), text[0, 1:], reduction="none")
        rows = [
            torch.autograd.grad(loss, seen, retain_graph=True)[0][0].norm(dim=-1) for loss in losses
        ]
    return _numpy(torch.stack(rows))


class _embedded:
    """Inside, what the embedding gives back is kept in a list and has a gradient."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def __enter__(self) -> list[Tensor]:
        seen: list[Tensor] = []

        def keep(module: object, inputs: object, output: Tensor) -> Tensor:
            output = output.detach().requires_grad_()
            seen.append(output)
            return output

        self.hook = self.model.embedding.register_forward_hook(keep)
        return seen

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


# ---- where it looks


@torch.no_grad()
def attention_maps(model: LanguageModel, tokens: Tensor) -> dict[str, np.ndarray]:
    """The weights of every operation that is a weighted sum of values, for tokens (1, T).

    Softmax attention has them by definition; linear attention and wkv have them as well, only that
    they never write them down.
    """
    with ops.watching() as calls:
        model(tokens)
    return {f"layer {i}": _numpy(weights()) for i, weights in enumerate(calls)}


# ---- what a position is worth


@torch.no_grad()
def loss_by_position(model: LanguageModel, text: Tensor) -> np.ndarray:
    """Mean over texts (B, T + 1) of the loss at each position: (T,) nats."""
    total = torch.zeros(text.shape[1] - 1, device=text.device)
    for rows in text.split(32):
        logits, _ = model(rows[:, :-1])
        targets = rows[:, 1:].flatten()
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
        total += losses.view(len(rows), -1).sum(0)
    return _numpy(total / len(text))


# ---- what tokens become


@torch.no_grad()
def contextual(
    model: LanguageModel, tokenizer: Tokenizer, tokens: Tensor
) -> tuple[np.ndarray, list[str]]:
    """What the head reads at some tokens of texts (B, T), each with what came before as a label."""
    read: list[Tensor] = []
    hook = model.norm_out.register_forward_hook(lambda module, inputs, output: read.append(output))
    model(tokens)
    hook.remove()
    B, T, D = read[0].shape
    chosen = np.linspace(0, B * T - 1, min(NAMED, B * T)).astype(int)
    labels = []
    for row, t in zip(*np.divmod(chosen, T), strict=True):
        before = tokenizer.decode([int(i) for i in tokens[row, max(0, t - 8) : t]])
        labels.append(f"{_visible(before)}[{_visible(tokenizer.decode([int(tokens[row, t])]))}]")
    return _numpy(read[0].reshape(B * T, D)[torch.from_numpy(chosen)]), labels


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().float().cpu().numpy())


# ---- figures


def figures(name: str, found: Findings) -> dict[str, Figure]:
    """A figure each; `attention` only where there is an operation that has it."""
    drawn = {
        **together([(name, found)]),
        "sensitivity": _draw_maps(
            {"loss at row t by input at column s": found.sensitivity}, found.tokens, name
        ),
        "embeddings": _draw_embeddings(found, name),
    }
    if found.attention:
        heads = {layer: abs(weights).mean(0) for layer, weights in found.attention.items()}
        size = "sizes of weights" if _negative(found) else "weights"
        drawn["attention"] = _draw_maps(heads, found.tokens, f"{name}: {size}, mean over heads")
    return drawn


def _negative(found: Findings) -> bool:
    return any(weights.min() < -1e-6 * abs(weights).max() for weights in found.attention.values())


@report.style()
def together(findings: Sequence[tuple[str, Findings]]) -> dict[str, Figure]:
    """The curves of several runs, each a name and its findings, in one figure each."""
    colours = report.colours([name for name, _ in findings])
    dependence, (before, after) = _figure(10, 4.2, 2)
    positions, (axes,) = _figure(6.4, 4.2, 1)
    for name, found in findings:
        for where, values in zip((before, after), found.dependence.values(), strict=True):
            shown = np.where(values > 0, values, np.nan) / values[0]
            only = " (0 but for the last token)" if not values[1:].any() else ""
            marker = "o" if only else None
            label = name + only if where is before else f"_{name}"  # once in the legend
            where.plot(shown, color=colours[name], marker=marker, ms=3, label=label)
        at, losses = _smooth(found.positions)
        axes.plot(at, losses, color=colours[name], marker=".", label=name)
    for where, title in ((before, "at initialisation"), (after, "trained")):
        where.set(yscale="log", title=title, xlabel="distance T - t, tokens")
    report.legend_below(dependence, 3)
    before.set_ylabel("norm of dL_T / dx_t, of dL_T / dx_T = 1")
    axes.set(xscale="log", xlabel="position in the context, tokens", ylabel="loss, nats a token")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend()
    return {"dependence": dependence, "positions": positions}


def _smooth(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over ever wider ranges of positions, each a quarter of an octave, and their middles."""
    at = np.arange(1, len(values) + 1)
    octave = np.floor(4 * np.log2(at))
    means = [
        (np.exp(np.log(at[octave == o]).mean()), values[octave == o].mean())
        for o in np.unique(octave)
    ]
    middles, smoothed = zip(*means, strict=True)
    return np.array(middles), np.array(smoothed)


@report.style()
def _draw_maps(maps: Mapping[str, np.ndarray], tokens: Sequence[str], title: str) -> Figure:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    columns = min(2, len(maps))
    rows = -(-len(maps) // columns)
    labels = [_visible(token) for token in tokens]
    whole = Figure(figsize=(6.2 * columns, 5.8 * rows + 0.3), layout="constrained")
    grid = report.grid(whole, len(maps), columns)
    for axes, (name, values) in zip(grid, maps.items(), strict=True):
        top = float(values.max()) or 1.0
        shown = np.where(values > 0, values, np.nan)
        image = axes.imshow(shown, norm=LogNorm(top * 1e-4, top), cmap="viridis")
        axes.set_xticks(range(len(labels)), labels, fontsize=6)
        axes.set_yticks(range(len(labels)), labels, fontsize=6)
        axes.set(title=name)
        axes.grid(False)
        whole.colorbar(image, ax=axes, shrink=0.8)
    whole.suptitle(title)
    return whole


@report.style()
def _draw_embeddings(found: Findings, name: str) -> Figure:
    from matplotlib.figure import Figure

    whole = Figure(figsize=(12, 6), layout="constrained")
    pair = (
        ("what the model reads", found.embeddings),
        ("what its head reads", found.contextual),
    )
    for axes, (title, (vectors, labels)) in zip(whole.subplots(1, 2), pair, strict=True):
        flat, share = principal(vectors)
        axes.scatter(*flat.T, s=2, alpha=0.3)
        for (x, y), label in zip(flat, labels, strict=True):
            axes.annotate(label.rpartition("[")[2].rstrip("]") or label, (x, y), fontsize=7)
        axes.set(title=f"{title}: two directions, {100 * share:.0f} % of the variance")
    whole.suptitle(name)
    return whole


def principal(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates (N, 2) along the two principal directions of (N, D), and their share of the
    variance."""
    centred = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-30))
    return left[:, :2] * sizes[:2], share


def _figure(width: float, height: float, columns: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    whole = Figure(figsize=(width, height), layout="constrained")
    return whole, whole.subplots(1, columns, squeeze=False, sharey=True)[0]


# ---- what is written


def write(name: str, found: Findings, run: Path) -> list[Path]:
    """PNG and SVG of every figure and the numbers in inspect.json in the run's ``inspect/``; a
    TensorBoard run with the curves as scalars and the embeddings for the projector.

    Returns:
        The PNG files.
    """
    from torch.utils.tensorboard import SummaryWriter

    out = run / "inspect"
    out.mkdir(exist_ok=True)
    numbers = {
        "dependence": {label: values.tolist() for label, values in found.dependence.items()},
        "loss_by_position": found.positions.tolist(),
    }
    (out / "inspect.json").write_text(json.dumps(numbers, indent=1) + "\n")
    drawn = figures(name, found)
    board = run / "tensorboard" / "inspect"
    shutil.rmtree(board, ignore_errors=True)  # what an earlier look left
    with SummaryWriter(str(board)) as writer:
        for stem, whole in drawn.items():
            writer.add_figure(f"inspect/{stem}", whole, close=False)
        for label, values in found.dependence.items():
            for distance, value in enumerate(values):
                writer.add_scalar(f"inspect/dependence {label}", value, distance)
        for position, value in enumerate(found.positions, 1):
            writer.add_scalar("inspect/loss_by_position", value, position)
        for tag, (vectors, labels) in (
            ("input", found.embeddings),
            ("contextual", found.contextual),
        ):
            writer.add_embedding(torch.from_numpy(vectors), metadata=labels, tag=tag)
    return _save(drawn, out)


def write_together(findings: Sequence[tuple[str, Findings]], out: Path) -> list[Path]:
    """PNG and SVG of the curves of several runs; the PNG files."""
    out.mkdir(parents=True, exist_ok=True)
    return _save(together(findings), out)


def _save(drawn: Mapping[str, Figure], out: Path) -> list[Path]:
    for stem, whole in drawn.items():
        report.save(whole, out / stem)
    return [out / f"{stem}.png" for stem in drawn]
