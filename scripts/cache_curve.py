"""Loss against the size of a bounded cache, of a trained Transformer; beside it models whose state
is bounded anyway, at the bytes they have.

    python scripts/cache_curve.py TRANSFORMER_RUN [RUN ...] --out docs/cache.svg

Every policy reads token by token, blocks of the Transformer's `task.seq_len` tokens of the held-out
text, each from the empty state. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import seqzoo
from seqzoo import tasks
from seqzoo.config.values import CACHE_POLICIES
from seqzoo.report import figures as look
from seqzoo.report.text import markdown
from seqzoo.runs.run import Run
from seqzoo.tasks.charlm import block_loss


def measure(run: Run, text: Tensor, seq_len: int) -> tuple[float, int]:
    """Nats a token, and bytes of state."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        _, state = run.model(text[None, :seq_len])
        return block_loss(run.model, text, seq_len), seqzoo.nbytes(state)


def held_out(run: Run) -> Tensor:
    keys = run.config["task"]
    encoded = tasks.prepare(keys, {"tokenizer": run.tokenizer})
    return torch.from_numpy(np.asarray(encoded.val).astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("transformer", type=Path)
    parser.add_argument("others", type=Path, nargs="*")
    parser.add_argument("--chars", type=int, help="of the held-out text (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="an .svg or .png")
    options = parser.parse_args()

    whole = seqzoo.load(options.transformer)
    seq_len = whole.config["task"]["seq_len"]
    text = held_out(whole)[: options.chars]
    sizes = [seq_len >> i for i in range(5, -1, -1)]
    full, full_bytes = measure(whole, text, seq_len)
    curves: dict[str, list[tuple[float, int]]] = {}
    for policy in CACHE_POLICIES:
        for size in sizes:
            run = seqzoo.load(options.transformer, cache=f"{policy}:{size}")
            curves.setdefault(policy, []).append(measure(run, text, seq_len))
            print(f"{policy}:{size}\t{curves[policy][-1]}", flush=True)

    others = []
    for folder in options.others:
        run = seqzoo.load(folder)
        loss, size = measure(run, held_out(run)[: options.chars], seq_len)
        others.append((run.config["model"]["name"], loss, size))
    draw(curves, others, full, seq_len, options.out)

    rows = [
        [str(size), f"{curves['window'][i][1] / 1024:,.1f}"]
        + [f"{curves[policy][i][0]:.4f}" for policy in curves]
        for i, size in enumerate(sizes)
    ]
    print(f"\neverything kept: {full:.4f}, {full_bytes / 1024:,.1f} KiB\n")
    print(markdown(["tokens kept", "KiB", *curves], rows))
    bounded = [[name, f"{size / 1024:,.1f}", f"{loss:.4f}"] for name, loss, size in others]
    print(markdown(["model", "KiB", "loss"], bounded))


@look.style()
def draw(
    curves: dict[str, list[tuple[float, int]]],
    others: list[tuple[str, float, int]],
    full: float,
    seq_len: int,
    out: Path,
) -> None:
    """Losses up to 0.12 above the whole cache's; what lies above is told in the legend."""
    figure = look.new_figure(6.4, 4.2)
    axes = figure.subplots()
    top = full + 0.12
    for policy, points in curves.items():
        label = f"{policy} (above the figure)" if points[-2][0] > top else policy
        axes.plot([b for _, b in points], [loss for loss, _ in points], "o-", label=label)
    axes.axhline(full, color="grey", lw=0.8, ls=":")
    axes.annotate("everything kept", (curves["window"][0][1], full), va="top", color="grey")
    for name, loss, size in others:
        axes.plot(size, loss, "s", color="black", ms=4)
        axes.annotate(name, (size, loss), xytext=(5, -3), textcoords="offset points")
    axes.set(
        xscale="log",
        ylim=(min([full, *(loss for _, loss, _ in others)]) - 0.02, top),
        xlabel="bytes of state",
        ylabel=f"nats a character, blocks of {seq_len}",
        title="Loss against the bytes of a bounded cache",
    )
    axes.legend()
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
