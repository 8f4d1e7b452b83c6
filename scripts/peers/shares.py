"""Where the time and the memory of every family go, as one Markdown table a mode.

    python scripts/peers/shares.py [--rounds N]

Training at 8 rows of 256 tokens and reading a prompt of 1,024, at about equal parameters, on one
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

import torch
from timing import CPU, Options, Shape, alternate
from torch.profiler import ProfilerActivity, profile
from training_pairs import FAMILIES, PARAMETERS, VOCAB_SIZE, default_step, draw_tokens, sized

from seqzoo.models.cost import flops_of_training
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build
from seqzoo.training.device import autocast, keep_freed_memory, pick_dtype

SHAPE = Shape(0, 0, 0, 8, 256)
PROMPT = 1024
SIDE = 2048  # of the product that stands for the peak
DTYPE = pick_dtype("auto", CPU)
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "aten::_mkldnn")
OPTIMISER = ("fused_adamw", "AdamW", "linalg_vector_norm", "foreach", "aten::mul_")
COPIES = ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::clone", "aten::contiguous")
KINDS = ("products", "kernels", "optimiser", "copies", "others")


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


def kept(model: LanguageModel) -> float:
    """KiB a token that the forward pass keeps for the backward pass, each memory counted once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    tokens = draw_tokens(SHAPE)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        with autocast(CPU, DTYPE):
            logits = model(tokens)[0]
    del logits
    return sum(sizes.values()) / SHAPE.tokens / 1024


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each family")
    options = Options(rounds=parser.parse_args().rounds)
    torch.set_num_threads(1)
    keep_freed_memory()
    models = {name: build(vocab_size=VOCAB_SIZE, **sized(name, PARAMETERS)) for name in FAMILIES}
    head = ("family", "ms", "limit", "share reached", *KINDS)

    flops = {n: SHAPE.tokens * flops_of_training(m, SHAPE.length) for n, m in models.items()}
    calls = {name: default_step(model, SHAPE) for name, model in models.items()}
    rows = table(f"training, B {SHAPE.batch_size}, T {SHAPE.length}", calls, flops, options)
    memory = [f"{kept(model):.1f}" for model in models.values()]
    show((*head, "kept, KiB a token"), [[*row, kib] for row, kib in zip(rows, memory, strict=True)])

    flops = {n: PROMPT * flops_of_training(m, PROMPT) / 3 for n, m in models.items()}
    calls = {name: reading(model) for name, model in models.items()}
    show(head, table(f"reading a prompt of {PROMPT:,}", calls, flops, options))


if __name__ == "__main__":
    main()
