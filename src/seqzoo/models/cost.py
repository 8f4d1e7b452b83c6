"""What a configured model costs, measured on the model itself: parameters, FLOPs, state bytes.

FLOPs are two for each multiply-add of the matrix products of the definitions, of which writing an
outer product into a matrix state, S + k v^T, is one. Operations element by element are not counted,
such as the decay of a state and a convolution over a few tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from seqzoo import ops
from seqzoo.config.values import shown
from seqzoo.models import hybrid
from seqzoo.models.flops import TokenFlops
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.width import solved
from seqzoo.models.zoo import build, layers
from seqzoo.state import State, nbytes, newest, windows

LENGTHS = (1, 64, 256, 1024, 4096)


def describe(
    keys: Mapping[str, Any], vocab_size: int = 65, parameters: int | None = None, **sizes: Any
) -> str:
    """Parameters, FLOPs a token and state bytes at several lengths, as text.

    Args:
        keys: the model's configuration.
        vocab_size: number of tokens V.
        parameters: of the whole model, to solve for its width; None: the `dim` of its keys.
        **sizes: `source_vocab_size` and `n_classes`, as for `build`; by default 2 classes.
    """
    if keys.get("architecture") == "classifier":
        sizes = {"n_classes": 2, **sizes}
    sizes = {"vocab_size": vocab_size, **sizes}
    whole = solved({**keys, **sizes}, parameters=parameters)
    keys = {key: whole[key] for key in keys}
    model = build(**sizes, **keys).eval()
    lines = [
        f"{keys['name']}: " + ", ".join(f"{k} {shown(v)}" for k, v in keys.items() if k != "name"),
        *_layers(keys),
        f"parameters          {model.n_parameters():>14,}   (vocabulary {vocab_size})",
        *(f"  {part:<18}{count:>14,}" for part, count in parameters_of(model).items()),
        f"FLOPs a token       {flops_per_token(model, 64):>14,}   (read in parallel, T = 64)",
        f"  of training       {round(flops_of_training(model, 64)):>14,}   (of sequences of 64)",
    ]
    if model.reads_both_ways:  # the whole text at once: there is no state between tokens
        return "\n".join(lines)
    lines += ["after a source of as many tokens:"] if model.reads_source else []
    lines += ["", f"{'context T':>10} {'state bytes':>14} {'FLOPs of token T':>18}"]
    for length in LENGTHS:
        if model.max_len is None or length <= model.max_len:
            size, flops = step_at(model, length)
            lines.append(f"{length:>10,} {size:>14,} {flops:>18,}")
    return "\n".join(lines)


def _layers(keys: Mapping[str, Any]) -> list[str]:
    """Of a hybrid, how many layers there are of each family: the pattern may be longer than it."""
    if "pattern" not in keys:
        return []
    found = Counter(own["name"] for _, own in layers(keys))
    named = dict.fromkeys(own["name"] for _, _, own in hybrid.entries(keys))
    return ["layers: " + ", ".join(f"{found[name]} {name}" for name in named)]


def parameters_of(model: LanguageModel) -> dict[str, int]:
    """The number of parameters of each part of a model."""
    parts = {"embedding and head": 0, "layers": 0}
    in_layers = {id(p) for block in model.blocks for p in block.parameters()}
    for parameter in model.parameters():
        part = "layers" if id(parameter) in in_layers else "embedding and head"
        parts[part] += parameter.numel()
    return parts


@torch.no_grad()
def flops_of_token(model: LanguageModel) -> TokenFlops:
    """FLOPs of each token, read token by token; with an encoder, after a source of one token."""
    return _of_tokens(model, _tokens(model, 1), _initial_state(model, 1))


def _of_tokens(model: LanguageModel, token: torch.Tensor, state: State) -> TokenFlops:
    first, (_, state) = _counted(lambda: model(token, state))

    def after(n: int) -> int:
        """FLOPs of the second token, with n filled places in every window that has so many."""
        flops, _ = _counted(lambda: model(token, newest(state, n)))
        return flops

    bends = []
    for W in sorted(windows(state) - {1}):
        before, last, full = (after(n) for n in (W - 2, W - 1, W))
        bends.append((W, (last - before) - (full - last)))
    return TokenFlops(first, after(1) - first, tuple(bends))


@torch.no_grad()
def flops_of_training(model: LanguageModel, length: int) -> float:
    """FLOPs a token of training on sequences of `length` tokens, read token by token: three times
    the forward pass, as the backward pass needs twice as many. With an encoder: the mean over a
    source and a target of half the length each. A text that is read both ways is read at once."""
    if model.reads_both_ways:
        return 3 * flops_per_token(model, length)
    if not model.reads_source:
        return 3 * flops_of_token(model).total(length) / length
    half = max(1, length // 2)
    encoding, (prompt, state) = _counted(lambda: model.start(_tokens(model, half), 0))
    return 3 * (encoding + _of_tokens(model, prompt, state).total(half)) / half / 2


@torch.no_grad()
def flops_per_token(model: LanguageModel, length: int) -> int:
    """FLOPs of reading `length` tokens in parallel, divided by them; with an encoder, of a source
    and a target of `length` tokens each."""
    tokens = _tokens(model, length)
    encoding, state = _counted(lambda: _initial_state(model, length))
    reading, _ = _counted(lambda: model(tokens, state))
    return (encoding + reading) // (length * (2 if model.reads_source else 1))


@torch.no_grad()
def step_at(model: LanguageModel, length: int) -> tuple[int, int]:
    """Bytes of the state after `length` tokens, and FLOPs of reading the last of them; with an
    encoder, after a source of as many tokens."""
    state = _initial_state(model, length)
    if length > 1:
        state = newest(model(_tokens(model, length - 1), state)[1], length - 1)
    flops, (_, state) = _counted(lambda: model(_tokens(model, 1), state))
    return nbytes(newest(state, length)), flops


@torch.no_grad()
def state_bytes(model: LanguageModel, length: int) -> int:
    """Bytes of the state of one sequence after `length` tokens; with an encoder, after a source of
    as many."""
    _, state = model(_tokens(model, length), _initial_state(model, length))
    return nbytes(newest(state, length))


def _initial_state(model: LanguageModel, length: int) -> State:
    """The state before the first token; with an encoder, after a source of `length` tokens."""
    return model.start(_tokens(model, length), 0)[1] if model.reads_source else None


def _tokens(model: LanguageModel, length: int) -> torch.Tensor:
    return torch.zeros(1, length, dtype=torch.long, device=model.embedding.weight.device)


def _counted(call: Callable[[], Any]) -> tuple[int, Any]:
    """The FLOPs of a call by the definitions, and its result."""
    count = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mul: _outer})
    with ops.backend("naive"), count as counter:
        result = call()
    return counter.get_total_flops(), result


def _outer(a: Any, b: Any, *, out_shape: Sequence[int], **_: Any) -> int:
    """FLOPs of the outer products (..., K, 1) * (..., 1, V): each number is multiplied once, and
    added once to where it goes. Other products: none."""
    if not all(isinstance(each, Sequence) and len(each) > 2 for each in (a, b)):
        return 0
    outer = a[-1] == b[-2] == 1 and min(a[-2], b[-1]) > 1
    return 2 * math.prod(out_shape) if outer else 0
