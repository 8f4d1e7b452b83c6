"""Where the time and the memory of every family go, as one Markdown table a mode.

    python scripts/peers/shares.py [--rounds N] [--only families|peers|prompt]

Training at 8 rows of 256 tokens and at one of 2,048, and reading a prompt of 1,024, at about equal
parameters; and the shapes in which scripts/peers/bench.py trains models beside peers. On one
thread, as `seqzoo train` computes on this machine. By torch's profiler: the shares of matrix
products, of kernels in C++, of the optimiser with clipping, of copies and conversions, and of all
other operations. The limit is the matrix products of the definitions at the speed of a product of
2,048 in the same process. Kept: what the backward pass needs besides parameters, in KiB a token.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timing import CPU, Options, Shape, alternate
from torch.profiler import ProfilerActivity, profile
from training_pairs import (
    FAMILIES,
    PARAMETERS,
    VOCAB_SIZE,
    default_step,
    draw_tokens,
    named,
    sized,
)

from seqzoo.models.cost import flops_of_training
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build, model_keys
from seqzoo.training.device import autocast, keep_freed_memory, pick_dtype

SHAPES = Shape(0, 0, 0, 8, 256), Shape(0, 0, 0, 1, 2048)
PEERS = (  # a shape: layers, width, heads, batch, tokens
    ("transformer", Shape(4, 128, 4, 12, 64)),
    ("transformer", Shape(6, 384, 6, 8, 256)),
    ("transformer", Shape(4, 256, 4, 4, 1024)),
    ("rwkv4", Shape(4, 256, 0, 8, 512)),
    ("mamba2", Shape(6, 144, 4, 8, 256)),
)
PROMPT = 1024
PARTS = ("families", "peers", "prompt")
SIDE = 2048  # of the product that stands for the peak
DTYPE = pick_dtype("auto", CPU)
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "aten::_mkldnn")
OPTIMISER = ("fused_adamw", "AdamW", "linalg_vector_norm", "foreach", "aten::mul_")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::clone", "aten::contiguous")
KINDS = ("products", "kernels", "optimiser", "copies", "others")
HEAD = ("family", "ms", "limit", "share reached", *KINDS)


def kind(name: str) -> str:
    """What an operation of the profile belongs to."""
    if name.startswith(PRODUCTS):
        return "products"
    if name.startswith("_"):  # an autograd function of ours, or its backward pass
        return "kernels"
    if any(part in name for part in OPTIMISER):
        return "optimiser"
    return "copies" if name.startswith(COPIES) else "others"


def shares(call: Callable[[], object]) -> dict[str, float]:
    """The share of each kind in a call, by the profiler."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        call()
    times: Counter[str] = Counter()
    for event in recorded.key_averages():
        times[kind(event.key)] += event.self_cpu_time_total
    return {name: times[name] / times.total() for name in KINDS}


def kept(model: LanguageModel, shape: Shape) -> float:
    """KiB a token that the forward pass keeps for the backward pass, each memory counted once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    tokens = draw_tokens(shape)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        with autocast(CPU, DTYPE):
            logits = model(tokens)[0]
    del logits
    return sum(sizes.values()) / shape.tokens / 1024


def reading(model: LanguageModel) -> Callable[[], object]:
    """One call reads a prompt of PROMPT tokens."""
    prompt = draw_tokens(Shape(0, 0, 0, 1, PROMPT))[:, :-1]

    def read() -> None:
        with torch.no_grad(), autocast(CPU, DTYPE):
            model(prompt)

    return read


def table(
    mode: str, calls: dict[str, Callable[[], object]], flops: dict[str, float], options: Options
) -> list[list[str]]:
    """Cells of one row a family: its time, the limit, and the shares of the time.

    Args:
        calls: what is measured, by family; flops: of a call.
    """
    a, b = (torch.randn(SIDE, SIDE, dtype=getattr(torch, DTYPE)) for _ in range(2))
    times = alternate({"": lambda: a @ b, **calls}, options)
    peak = 2 * SIDE**3 / statistics.median(times[""])
    print(f"\n{mode}; one thread; peak {peak / 1e9:,.0f} GFLOP/s in {DTYPE}\n")
    rows = []
    for name, call in calls.items():
        taken, limit = statistics.median(times[name]), flops[name] / peak
        numbers = [f"{1000 * taken:.1f}", f"{1000 * limit:.1f}", f"{limit / taken:.0%}"]
        rows.append([name, *numbers, *(f"{share:.0%}" for share in shares(call).values())])
    return rows


def show(head: tuple[str, ...], rows: list[list[str]]) -> None:
    for cells in (head, ["---", *["--:"] * (len(head) - 1)], *rows):
        print("| " + " | ".join(cells) + " |", flush=True)


def of_shape(name: str, shape: Shape) -> LanguageModel:
    """A model of the sizes of a shape, as scripts/peers/bench.py has it: the Transformer with the
    positions and the head of its peer."""
    keys: dict[str, Any] = {k: size for k, size in named(shape).items() if k in model_keys(name)}
    if name == "transformer":
        keys |= {"position": "learned", "max_len": shape.length + 1, "tie_embeddings": True}
    keys |= {"mamba2": {"expand": 2, "state_size": 32}}.get(name, {})
    return build(name, vocab_size=VOCAB_SIZE, **keys)


def training(models: dict[str, tuple[LanguageModel, Shape]], what: str, options: Options) -> None:
    """The table of training steps: of each its model and shape."""
    flops = {n: s.tokens * flops_of_training(m, s.length) for n, (m, s) in models.items()}
    calls = {name: default_step(*each) for name, each in models.items()}
    rows = table(f"training, {what}", calls, flops, options)
    memory = [f"{kept(*each):.1f}" for each in models.values()]
    rows = [[*row, kib] for row, kib in zip(rows, memory, strict=True)]
    show((*HEAD, "kept, KiB a token"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each family")
    parser.add_argument("--only", choices=PARTS, help="one of the parts (default: all)")
    given = parser.parse_args()
    options, parts = Options(rounds=given.rounds), [given.only] if given.only else PARTS
    torch.set_num_threads(1)
    keep_freed_memory()
    models = {name: build(vocab_size=VOCAB_SIZE, **sized(name, PARAMETERS)) for name in FAMILIES}
    for shape in SHAPES if "families" in parts else ():
        what = f"B {shape.batch_size}, T {shape.length:,}"
        training({name: (model, shape) for name, model in models.items()}, what, options)
    if "peers" in parts:
        peers = {f"{name} {shape}": (of_shape(name, shape), shape) for name, shape in PEERS}
        training(peers, "the shapes of the peers", options)
    if "prompt" in parts:
        flops = {n: PROMPT * flops_of_training(m, PROMPT) / 3 for n, m in models.items()}
        calls = {name: reading(model) for name, model in models.items()}
        show(HEAD, table(f"reading a prompt of {PROMPT:,}", calls, flops, options))


if __name__ == "__main__":
    main()
