"""Decoding one token after another, one sequence, in float32 as `seqzoo generate` does: beside the
`rwkv` package, beside the model's matrix-vector products alone, beside the reading of the bytes
that a token needs, and a long cache beside a short one."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import statistics
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import Options, Row, Shape, alternate, compare, rates
from torch import Tensor, nn

from seqzoo.decoding.beam import beam_search
from seqzoo.decoding.step import EXACT, WORTH, Types, prepare
from seqzoo.exchange.rwkv_names import official_name
from seqzoo.models.cost import state_bytes
from seqzoo.models.language_model import LanguageModel, PositionEmbedding
from seqzoo.models.zoo import build, families
from seqzoo.report.text import number

VOCAB_SIZE = 65  # of Tiny Shakespeare
CONTEXT = 128  # tokens read before the one that is measured
SMALLEST = 16  # rows and columns of a parameter that is a matrix, and no taps of a convolution


def reads(model: LanguageModel, tokens: Tensor) -> Callable[[], object]:
    """Reading tokens (1, T) from the empty state."""

    def call() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(tokens)[0]
        return logits

    return call


def decodes(model: LanguageModel, context: int, types: Types = EXACT) -> Callable[[], object]:
    """Reading one token after `context` others, each time, by the step that `seqzoo generate`
    prepares with weights and a cache of some types."""
    model.eval()
    token = torch.zeros(1, dtype=torch.long)
    with torch.inference_mode():
        _, state = model(torch.randint(VOCAB_SIZE, (1, context)))
        step = prepare(model, state, 1, WORTH, types)

    def call() -> Tensor:
        with torch.inference_mode():
            if step is None:
                logits: Tensor = model(token[None], state)[0]
                return logits
            step.rewind()
            return step(token)

    return call


# ---- beside the rwkv package


def rwkv4(options: Options, shape: Shape) -> list[Row]:
    """RWKV-4 beside the `rwkv` package with the same weights: prefill, and decoding."""
    shape = options.size(shape)
    model = build("rwkv4", vocab_size=VOCAB_SIZE, n_layers=shape.n_layers, dim=shape.dim).eval()
    prompt = torch.randint(VOCAB_SIZE, (1, shape.length))
    theirs = {name: rwkv_package(model, script=script) for name, script in SCRIPTED.items()}

    def decoding(peer: Any) -> Callable[[], object]:
        state: Any = peer.forward(prompt[0, :CONTEXT].tolist(), None)[1]

        def call() -> object:
            nonlocal state
            logits, state = peer.forward([0], state)
            return logits

        return call

    def prefill(peer: Any) -> Callable[[], object]:
        given = prompt[0].tolist()
        return lambda: peer.forward(given, None)

    work, note = f"RWKV-4 {shape.n_layers}x{shape.dim} B1", f"{model.n_parameters():,} parameters"
    return [
        compare(
            f"decode {work}",
            options,
            ours={"float32": decodes(model, CONTEXT)},
            peers={name: decoding(peer) for name, peer in theirs.items()},
            tokens=1,
            note=note,
        ),
        compare(
            f"prefill {work} T{shape.length:,}",
            options,
            ours={"float32": reads(model, prompt)},
            peers={name: prefill(peer) for name, peer in theirs.items()},
            tokens=shape.length,
            note=note,
        ),
    ]


SCRIPTED = {"rwkv, TorchScript": True, "rwkv": False}


def rwkv_package(model: LanguageModel, *, script: bool) -> Any:
    """The `rwkv` package's model with our weights and on their device, in float32.

    Args:
        script: whether it compiles itself by TorchScript, which it decides when it is imported. So
            its module is loaded anew.
    """
    os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = str(int(script)), "0"
    os.environ["RWKV_V7_ON"] = "0"
    package = importlib.util.find_spec("rwkv.model")
    assert package is not None and package.origin is not None
    spec = importlib.util.spec_from_file_location(f"rwkv_model_{int(script)}", package.origin)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights = {official_name(n): p.detach().clone() for n, p in model.named_parameters()}
    device = next(iter(weights.values())).device
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        torch.save(weights, Path(folder) / "model.pth")
        return module.RWKV(model=str(Path(folder) / "model"), strategy=f"{device} fp32")


# ---- beside its own matrix-vector products, and beside a short context


def matrices(model: nn.Module) -> Iterator[Tensor]:
    """Every matrix that one token is multiplied by, as (out, in): those of linear and recurrent
    layers, the head, and other parameters that are neither embeddings nor taps of a convolution."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(m.table) for m in model.modules() if isinstance(m, PositionEmbedding)}
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.RNNBase)]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    for parameter in model.parameters():
        if id(parameter) in inside:
            if parameter.ndim == 2:
                yield parameter.detach()
        elif id(parameter) not in tables:
            if parameter.ndim >= 2 and min(parameter.shape[-2:]) >= SMALLEST:
                yield parameter.detach().flatten(0, -2)


def multiplies(model: nn.Module) -> Callable[[], object]:
    """The matrix-vector products of one token, one after the other, each with a vector of its
    own."""
    products = [(torch.randn(1, W.shape[-1]), W) for W in matrices(model)]

    def call() -> None:
        with torch.inference_mode():
            for x, W in products:
                F.linear(x, W)

    return call


def read_bytes(model: LanguageModel, context: int) -> int:
    """The bytes that a token reads at least: the matrices and the state, in float32."""
    return sum(W.nbytes for W in matrices(model)) + state_bytes(model, context)


def reading(size: int) -> Callable[[], object]:
    """Reading so many bytes as fast as PyTorch can: the sum of a tensor of float32 numbers."""
    return torch.randn(size // 4).sum


def products(options: Options, shape: Shape) -> list[Row]:
    """For every family: a decoded token beside its matrix-vector products alone, and beside the
    reading of its bytes."""
    shape = options.size(shape)
    context = options.length(CONTEXT)
    rows = []
    for name in families():
        model = build(name, vocab_size=VOCAB_SIZE, n_layers=shape.n_layers, dim=shape.dim)
        size = read_bytes(model, context)
        calls = {
            "token": decodes(model, context),
            "products": multiplies(model),
            "reading": reading(size),
        }
        times = alternate(calls, options)

        def ratio(over: str, under: str) -> float:
            pairs = zip(times[over], times[under], strict=True)  # noqa: B023
            return statistics.median(x / y for x, y in pairs)

        rows.append(
            Row(
                f"decode {name} {shape.n_layers}x{shape.dim} B1, context {context}",
                "ms",
                "its products alone",
                rates(times["token"], None),
                rates(times["products"], None),
                f"{number(ratio('token', 'products'))} times its products; reading its "
                f"{size / 1e6:.1f} MB takes {ratio('reading', 'token'):.0%}; "
                f"{model.n_parameters():,} parameters",
            )
        )
    return rows


def searches(model: LanguageModel, prompt: Tensor, tokens: int, worth: int) -> Callable[[], object]:
    """Beam search by 5 beams, with a prepared step where `worth` tokens or more follow."""

    def call() -> object:
        with unittest.mock.patch("seqzoo.decoding.step.WORTH", worth):
            return beam_search(model, prompt, beams=5, max_tokens=tokens, stop=0)

    return call


def beams(options: Options, shape: Shape) -> list[Row]:
    """Beam search of some rows by 5 beams, by the prepared step and by the model itself."""
    shape = options.size(shape)
    rows, tokens = [], options.length(30)
    for name, count in product(("transformer", "lstm"), (1, 8, 32)):
        model = build(name, vocab_size=8000, n_layers=shape.n_layers, dim=shape.dim).eval()
        prompt = torch.randint(8000, (count, 8))
        ours = {"prepared": searches(model, prompt, tokens, WORTH)}
        peers = {"the model": searches(model, prompt, tokens, tokens + 1)}
        work = f"{count} x 5 beams, {tokens} tokens, {name} {shape.n_layers}x{shape.dim}"
        rows.append(compare(work, options, ours=ours, peers=peers))
    return rows


def weights(options: Options, shape: Shape) -> list[Row]:
    """A decoded token with weights in 16 and in 8 bits beside one in float32."""
    shape = options.size(shape)
    rows = []
    for name in ("rwkv4", "transformer", "lstm"):
        model = build(name, vocab_size=VOCAB_SIZE, n_layers=shape.n_layers, dim=shape.dim)
        peers = {"float32": decodes(model, CONTEXT)}
        for kind in ("bfloat16", "int8"):
            ours = {kind: decodes(model, CONTEXT, Types(weights=kind))}
            work = f"decode {name} {shape.n_layers}x{shape.dim} B1, weights in {kind}"
            rows.append(compare(work, options, ours=ours, peers=peers))
    return rows


def cache(options: Options, shape: Shape) -> list[Row]:
    """For every family, and for caches that are cut or rounded: a token after a long context beside
    one after a short one; and the reading of its bytes."""
    shape = options.size(shape)
    short, long = (8, 32) if options.tiny else (CONTEXT, shape.length)
    models: dict[str, dict[str, Any]] = {name: {"name": name} for name in families()}
    for policy in ("window", "tova"):
        models[f"transformer cache={policy}:{short}"] = {
            "name": "transformer",
            "cache": f"{policy}:{short}",
        }
    rows = []
    for work, keys in models.items():
        model = build(vocab_size=VOCAB_SIZE, n_layers=shape.n_layers, dim=shape.dim, **keys)
        size, types = read_bytes(model, long), [EXACT]
        if work in ("transformer", "fox"):
            types += [Types(kv_cache="bfloat16"), Types(kv_cache="int8")]
        peers = {f"after {short:,} tokens": decodes(model, short)}
        also = {"reading": reading(size)}
        for each in types:
            ours = {each.narrow() or "float32": decodes(model, long, each)}
            title = f"decode {work} {shape.n_layers}x{shape.dim} B1 after {long:,} tokens"
            note = f"{size / 1e6:.1f} MB in float32"
            rows.append(compare(title, options, ours=ours | also, peers=peers, note=note))
    return rows
