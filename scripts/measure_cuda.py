"""The measurements behind two choices for CUDA; prints a Markdown table each.

    python scripts/measure_cuda.py [--device cpu]

1. Matrix states, forward and backward: fla's kernels, or our own chunks (`seqzoo.ops.registry`).
2. A decoding step: captured as a CUDA graph, or launched kernel by kernel
   (`seqzoo.decoding.graph`).

`--device cpu` measures what a CPU has in their place, in small, to see that the script runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo import build, ops
from seqzoo.decoding.step import prepare
from seqzoo.models.zoo import FAMILIES, model_keys
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.registry import fla_installed
from seqzoo.ops.rwkv7 import FASTEST_DECAY
from seqzoo.training.device import float32_products, synchronise

HEADS, SIZE = 8, 64  # of the matrix states
TOKENS = 32_768  # in all rows of a batch together


def milliseconds(device: torch.device, *functions: Callable[[], object]) -> list[float]:
    """The median time of each, taken in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(8):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            synchronise(device)
            if turn >= 3:  # the first turns compile and choose
                taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def inputs(kind: str, B: int, T: int, device: torch.device) -> tuple[dict[str, Tensor], dict]:
    """Tensors for `matrix_state`, and what else it is told, as the families of a kind give them."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    H, K = HEADS, SIZE
    named = {name: draw(B, H, T, K) for name in ("q", "k", "v")} | {"S": draw(B, H, K, K)}
    more: dict[str, Any] = {}
    if kind == "a decay a head (retention, Mamba-2)":
        named["log_w"] = F.logsigmoid(draw(B, H, T, 1))
    elif kind == "no decay, delta rule (DeltaNet)":
        named["b"] = F.normalize(draw(B, H, T, K), dim=-1)
        named["a"] = -0.5 * named["b"]
    else:
        named["log_w"] = F.logsigmoid(draw(B, H, T, K)) / 16
    if kind == "a decay a channel, a bonus (RWKV-6)":
        named["u"] = draw(H, K)
    if kind == "a decay a channel, delta rule (RWKV-7)":
        named["log_w"] = -FASTEST_DECAY * draw(B, H, T, K).sigmoid()
        named["b"] = F.normalize(draw(B, H, T, K), dim=-1)
        named["a"] = -0.5 * named["b"]
        more["min_log_w"] = -FASTEST_DECAY
    return {name: x.requires_grad_() for name, x in named.items()}, more


KINDS = (
    "a decay a head (retention, Mamba-2)",
    "a decay a channel (GLA)",
    "a decay a channel, a bonus (RWKV-6)",
    "a decay a channel, delta rule (RWKV-7)",
    "no decay, delta rule (DeltaNet)",
)


def matrix_states(device: torch.device) -> None:
    forms, lengths, tokens = ["blocked", "fla"], (512, 4096, 32_768), TOKENS
    if device.type == "cpu":
        forms, lengths, tokens = ["chunked", "native"], (64, 128), 128
    elif not fla_installed():
        forms = ["blocked"]
    print(f"| matrix state, {HEADS} heads of {SIZE} | B | T | " + " | ".join(forms) + " |")
    print("|---|--:|--:|" + "--:|" * len(forms))
    for kind in KINDS:
        for T in lengths:
            B = tokens // T
            named, more = inputs(kind, B, T, device)

            def step(form: str, named=named, more=more) -> None:
                with ops.backend(form):
                    y, S = matrix_state(**named, **more)
                torch.autograd.grad(y.sum() + S.sum(), list(named.values()), allow_unused=True)

            with float32_products(device, "bfloat16"):
                times = milliseconds(device, *(lambda form=form: step(form) for form in forms))
            cells = " | ".join(f"{taken:.2f} ms" for taken in times)
            print(f"| {kind} | {B} | {T:,} | {cells} |", flush=True)


@torch.inference_mode()
def decoding(device: torch.device) -> None:
    print("| a token of 4 x 256, batch 1, float32 | prepared | plain |\n|---|--:|--:|")
    for name in FAMILIES:
        sizes = {"n_layers": 4, "dim": 256, "n_heads": 4}
        keys = {key: size for key, size in sizes.items() if key in model_keys(name)}
        model = build(name, vocab_size=65, **keys).to(device).eval()
        token = torch.zeros(1, dtype=torch.long, device=device)
        _, state = model(token.expand(1, 128))
        prepared = prepare(model, state, 1, 10_000)
        calls: list[Callable[[], object]] = [partial(model, token[None], state)]
        if prepared is not None:
            calls.insert(0, partial(prepared, token))
        times = [f"{taken:.3f} ms" for taken in milliseconds(device, *calls)]
        print(f"| {name} | {' | '.join(times if prepared else ['', *times])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    matrix_states(device)
    print()
    decoding(device)


if __name__ == "__main__":
    main()
