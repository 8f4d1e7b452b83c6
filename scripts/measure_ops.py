"""The measurements behind five choices in the code; prints a Markdown table each.

    python scripts/measure_ops.py

1. Attention on a CPU, of a whole sequence, forward and backward: in C++, two matrix products and a
   softmax, or SDPA; and of one query (`seqzoo.ops.choose`).
2. RNN and GRU on a CPU, in bfloat16 or in float32 (`seqzoo.ops.recurrent`).
3. Dropout from random bytes, or `nn.Dropout` (`seqzoo.models.block`).
4. Chunks of a matrix state, with a decay a channel, and with the delta rule besides
   (`seqzoo.ops.matrix_state`).
5. A step of Muon, each matrix on its own or those of one shape together
   (`seqzoo.training.optimizers`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F

from seqzoo import ops
from seqzoo.models.block import Dropout
from seqzoo.ops import unit
from seqzoo.ops.attention import causal_attention
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.training.optimizers import Muon


def milliseconds(*functions: Callable[[], object], repeats: int = 15) -> list[float]:
    """The median time of each, taken in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 2):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if turn >= 2:  # the first turns warm up
                taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def attention() -> None:
    print(
        "| rows, heads of | T | dtype | C++ | matrix products | SDPA |\n|---|--:|---|--:|--:|--:|"
    )
    for B, H, T, K in (
        *((max(1, 4096 // T), 4, T, 32) for T in (64, 128, 256, 512, 1024, 2048)),
        *((12, 4, 64, 32), (8, 6, 256, 64), (4, 4, 1024, 64)),  # training beside nanoGPT
    ):
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(B, H, T, K, dtype=dtype, requires_grad=True) for _ in range(3))

            def step(form: str, q=q, k=k, v=v) -> None:
                with ops.backend(form):
                    causal_attention(q, k, v).sum().backward()

            forms = ("native", "naive", "sdpa")
            times = milliseconds(*(partial(step, form) for form in forms))
            cells = " | ".join(f"{time:.2f} ms" for time in times)
            print(f"| {B} x {H}, {K} | {T:,} | {str(dtype)[6:]} | {cells} |", flush=True)


def one_query() -> None:
    print("\n| S | dtype | matrix products | SDPA |\n|--:|---|--:|--:|")
    for S in (128, 512, 2048, 8192):
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(1, 8, n, 32, dtype=dtype) for n in (1, S, S))

            def step(form: str, q=q, k=k, v=v) -> None:
                with torch.inference_mode(), ops.backend(form):
                    causal_attention(q, k, v)

            plain, sdpa = milliseconds(lambda: step("naive"), lambda: step("sdpa"))
            print(f"| {S:,} | {str(dtype)[6:]} | {plain:.3f} ms | {sdpa:.3f} ms |", flush=True)


def cells() -> None:
    print("\n| cell | B | T | bfloat16: train | read | float32: train | read |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for kind in (torch.nn.RNN, torch.nn.GRU):
        cell = kind(208, 208, batch_first=True)
        for B, T in ((2, 1024), (8, 256), (16, 128), (32, 64)):
            x = torch.randn(B, T, 208)

            def read(narrow: bool, cell=cell, x=x) -> torch.Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                    return cell(x)[0]

            def infer(narrow: bool, read=read) -> None:
                with torch.inference_mode():
                    read(narrow)

            times = milliseconds(
                lambda read=read: read(True).float().sum().backward(),
                lambda infer=infer: infer(True),
                lambda read=read: read(False).sum().backward(),
                lambda infer=infer: infer(False),
                repeats=5,
            )
            shown = " | ".join(f"{t:.1f} ms" for t in times)
            print(f"| {kind.__name__} | {B} | {T:,} | {shown} |", flush=True)


def dropout() -> None:
    print("\n| elements | from bytes | nn.Dropout |\n|--:|--:|--:|")
    for n in (2**16, 2**20):
        x, ours = torch.randn(n), Dropout(0.1)
        fast, plain = milliseconds(lambda x=x, f=ours: f(x), lambda x=x: F.dropout(x, 0.1))
        print(f"| {n:,} | {fast:.2f} ms | {plain:.2f} ms |", flush=True)


def chunks() -> None:
    print("\n| rule | K | chunk 16 | 32 | 64 |\n|---|--:|--:|--:|--:|")
    for delta, K in product((False, True), (32, 64)):
        q, k, v, w = (torch.randn(8, 4, 256, K, requires_grad=True) for _ in range(4))
        S = torch.zeros(8, 4, K, K)

        def step(chunk: int, delta=delta, q=q, k=k, v=v, w=w, S=S) -> None:
            rule = {"a": -0.5 * unit(k), "b": unit(k)} if delta else {}
            log_w = -0.6 * w.sigmoid()
            y, _ = matrix_state(q, unit(k), v, S, log_w, **rule, min_log_w=-0.6, chunk=chunk)
            y.sum().backward()

        times = milliseconds(*(partial(step, size) for size in (16, 32, 64)))
        cells = " | ".join(f"{time:.1f} ms" for time in times)
        print(f"| {'delta' if delta else 'decay'} | {K} | {cells} |", flush=True)


def muon() -> None:
    print("\n| matrices | each on its own | together |\n|---|--:|--:|")
    for dim in (144, 256):
        shapes = [(dim, dim)] * 20 + [(4 * dim, dim)] * 8
        matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        keys = {"lr": 0.001, "weight_decay": 0.1}
        alone = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **keys)
        apart, together = milliseconds(alone.step, Muon(matrices, **keys).step)
        named = f"20 of {dim} x {dim}, 8 of {4 * dim} x {dim}"
        print(f"| {named} | {apart:.1f} ms | {together:.1f} ms |", flush=True)


if __name__ == "__main__":
    attention()
    one_query()
    cells()
    dropout()
    chunks()
    muon()
