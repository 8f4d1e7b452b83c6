"""The laws every mixer obeys, as functions that measure by how much one is broken.

The tests hold every family to them, and `seqzoo verify` shows the user on this machine. Each takes
`f`, which maps ``(x, state)`` to ``(y, state)`` with x (B, T, D), and returns the largest error,
relative to the largest value where that is above 1; infinity where something is broken outright.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from seqzoo import ops
from seqzoo.config import CACHE_POLICIES
from seqzoo.models.encoder_decoder import EncoderDecoder
from seqzoo.models.language_model import LanguageModel, through
from seqzoo.models.zoo import CHOICES, build, family, model_keys
from seqzoo.state import State, grows, leaves, map_leaves, nbytes, select

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Layers(nn.Module):
    """The layers of a language model, without embedding and head: what the laws are about. Those of
    a decoder begin behind a source that is always the same, whose rows are of unlike lengths where
    the states of such rows can stand in one tensor."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        if state is None and isinstance(self.model, EncoderDecoder):
            source = torch.arange(7, device=x.device).repeat(len(x), 1)
            lengths = [7 if self.model.wants_one_length else 7 - b % 3 for b in range(len(x))]
            state = self.model.encode(source, lengths)
        return through(self.model.layers, x, state)


def variants(name: str) -> Iterator[dict[str, Any]]:
    """The keys of each variant of a family: its defaults, and every value of every choice on its
    own. Norms and the MLP's activation are left out, which see one token at a time."""
    yield {}
    defaults = model_keys(name)
    for key, values in {"block": CHOICES["block"], **family(name).choices}.items():
        for value in values:
            if key in defaults and value != defaults[key]:
                yield {key: value}
    if "n_kv_heads" in defaults:
        yield {"n_kv_heads": 1}
    if "cache" in defaults:
        yield from ({"cache": f"{policy}:5"} for policy in CACHE_POLICIES)


def joints(name: str) -> Iterator[dict[str, Any]]:
    """The keys of each way to join a family's decoder to an encoder."""
    yield {"head": "encoder_decoder"}
    yield {"head": "encoder_decoder", "bridge": "state"}
    for attention in ("bahdanau", "luong"):
        yield {"head": "encoder_decoder", "attention": attention}


def example(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **keys: Any) -> Layers:
    """Small layers of a family, every weight moved at random: at their initialisation some families
    are all zero."""
    torch.manual_seed(seed)
    small = {"dim": 16, "n_layers": 2, "n_heads": 2, "max_len": 600}
    known = model_keys(name)
    model = build(name, vocab_size=11, **{k: v for k, v in small.items() if k in known}, **keys)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Layers(model).to(dtype).eval()


def chunk_law(f: nn.Module, x: Tensor, cuts: list[int]) -> float:
    """1. Any split of T, carried through the state, gives the same y, the same final state, the
    same gradients."""

    def in_parts(x: Tensor) -> tuple[Tensor, State]:
        ys, state = [], None
        for part in x.tensor_split(cuts, 1):
            if part.shape[1]:
                y, state = f(part, state)
                ys.append(y)
        return torch.cat(ys, 1), state

    return _difference(_run(f, lambda x: f(x, None), x), _run(f, in_parts, x))


def causality(f: nn.Module, x: Tensor, t: int) -> float:
    """2. y up to t does not move when x after t does: its gradient is exactly zero."""
    x = x.clone().requires_grad_()
    y, _ = f(x, None)
    (gradient,) = torch.autograd.grad(y[:, : t + 1].square().sum(), x)
    return math.inf if gradient[:, t + 1 :].any() else 0.0


def definition_law(f: nn.Module, x: Tensor, form: str) -> float:
    """3. A fast form gives what the naive definition gives, values and gradients."""
    with ops.backend("naive"):
        expected = _run(f, lambda x: f(x, None), x)
    with ops.backend(form):
        return _difference(expected, _run(f, lambda x: f(x, None), x))


@torch.no_grad()
def empty_state(f: nn.Module, x: Tensor) -> float:
    """4. None is the empty state: nothing that was read before has left a trace."""
    first, _ = f(x, None)
    f(x.flip(1), None)
    again, _ = f(x, None)
    return 0.0 if torch.equal(first, again) else math.inf


@torch.no_grad()
def purity(f: nn.Module, x: Tensor) -> float:
    """5. A state that was handed on is not changed: two continuations of it do not see each
    other."""
    _, state = f(x, None)
    before = map_leaves(Tensor.clone, state)
    one, _ = f(x, state)
    f(x.flip(1), state)
    again, _ = f(x, state)
    same = all(torch.equal(a, b) for a, b in zip(leaves(before), leaves(state), strict=True))
    return 0.0 if same and torch.equal(one, again) else math.inf


@torch.no_grad()
def batch_first(f: nn.Module, x: Tensor) -> float:
    """6. Rows of the state are rows of the batch: selecting some equals having read those alone."""
    _, state = f(x, None)
    if any(leaf.shape[0] != x.shape[0] for leaf in leaves(state)):
        return math.inf
    rows = torch.arange(x.shape[0] - 1, -1, -2)
    y, _ = f(x, state)
    alone, _ = f(x[rows], select(state, rows))
    return _error(y[rows], alone)


@torch.no_grad()
def precision(f: nn.Module, x: Tensor) -> float:
    """7. Under bfloat16 autocast y has the dtype of x, and what accumulates is float32 or wider."""
    with torch.autocast(x.device.type, torch.bfloat16):
        y, state = f(x, None)
        y, state = f(x, state)
    narrow = any(t.is_floating_point() and t.element_size() < 4 for t in _accumulated(state))
    return math.inf if narrow or y.dtype != x.dtype else 0.0


@torch.no_grad()
def padding(f: nn.Module, x: Tensor, valid: int) -> float:
    """8. In a right-padded row the valid outputs are those of the row alone."""
    padded = torch.cat((x[:, :valid], torch.randn_like(x[:, valid:])), 1)
    y, _ = f(padded, None)
    alone, _ = f(x[:, :valid], None)
    return _error(y[:, :valid], alone)


@torch.no_grad()
def bounded_state(f: nn.Module, x: Tensor) -> float:
    """9. The measured bytes do not depend on how much was read; a growing cache's grow by the same
    for every token. And they are all that is held."""
    sizes = []
    state = None
    for t in range(3):
        _, state = f(x[:, t : t + 1], state)
        sizes.append(nbytes(state))
    growth = sizes[1] - sizes[0]
    _, whole = f(x, None)
    expected = sizes[0] + growth * (x.shape[1] - 1)
    flat = growth == 0 or grows(state)
    held = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage() for leaf in leaves(whole)}
    if sum(storage.nbytes() for storage in held.values()) > 1.1 * nbytes(whole):
        return math.inf  # a view keeps more alive than it shows
    return 0.0 if flat and sizes[2] - sizes[1] == growth and nbytes(whole) == expected else math.inf


def verify(names: list[str]) -> bool:
    """Measure laws 1-6 and 9 for families, in every variant, behind every kind of encoder, and in
    float64 and float32; print the table.

    Returns:
        Whether all hold.
    """
    B = 3
    columns = ("chunks", "causal", "definition", "empty", "purity", "batch", "bounded")
    print(f"{'model':<58}{'dtype':<9}" + "".join(f"{column:>12}" for column in columns))
    all_hold = True
    for name in names:
        for keys in (*variants(name), *joints(name)):
            # Of a decoder that is fed what it said every step multiplies what was rounded.
            T = 17 if "head" in keys else 65
            for dtype, tolerance in TOLERANCE.items():
                f = example(name, dtype, **keys)
                torch.manual_seed(1)
                x = torch.randn(B, T, 16, dtype=dtype)
                forms = {form for forms in ops.BACKENDS.values() for form in forms} - {"naive"}
                errors = (
                    max(chunk_law(f, x, cuts) for cuts in ([1], [T // 2], [1, 2, T - 8])),
                    causality(f, x, T // 2),
                    max(definition_law(f, x, form) for form in sorted(forms)),
                    empty_state(f, x),
                    purity(f, x),
                    batch_first(f, x),
                    bounded_state(f, x),
                )
                label = " ".join([name, *(f"{k}={v}" for k, v in keys.items())])
                cells = "".join(
                    f"{'exact' if e == 0 else 'BROKEN' if e == math.inf else f'{e:.0e}':>12}"
                    for e in errors
                )
                holds = max(errors) <= tolerance
                all_hold &= holds
                print(
                    f"{label:<58}{str(dtype)[6:]:<9}{cells}{'' if holds else '   <- broken'}",
                    flush=True,
                )
    limits = ", ".join(
        f"{tolerance:g} in {str(dtype)[6:]}" for dtype, tolerance in TOLERANCE.items()
    )
    print(f"\n{'All laws hold' if all_hold else 'A law is broken'} (errors allowed: {limits}).")
    return all_hold


def _run(f: nn.Module, read: Callable[[Tensor], tuple[Tensor, State]], x: Tensor) -> list[Tensor]:
    """y, the final state, and the gradients of a fixed mixture of both with respect to x and every
    parameter."""
    x = x.clone().requires_grad_()
    y, state = read(x)
    outputs = [y, *(leaf for leaf in leaves(state) if leaf.is_floating_point())]
    random = torch.Generator().manual_seed(2)
    mixture = sum(
        (torch.randn(o.shape, generator=random, dtype=o.dtype).to(o.device) * o).sum()
        for o in outputs
    )
    wanted = [x, *f.parameters()]
    gradients = torch.autograd.grad(mixture, wanted, allow_unused=True)  # type: ignore[arg-type]
    return [o.detach() for o in outputs] + [g for g in gradients if g is not None]


def _difference(expected: list[Tensor], given: list[Tensor]) -> float:
    if [t.shape for t in expected] != [t.shape for t in given]:
        return math.inf
    return max(_error(a, b) for a, b in zip(expected, given, strict=True))


def _error(expected: Tensor, given: Tensor) -> float:
    if not expected.numel():
        return 0.0
    error = float((expected - given).abs().max() / max(1.0, float(expected.abs().max())))
    return error if math.isfinite(error) else math.inf


def _accumulated(state: State) -> Iterator[Tensor]:
    """The leaves that accumulate: all, but for parts that grow, and parts that say which."""
    if isinstance(state, Tensor):
        yield state
    elif hasattr(state, "accumulated"):
        yield from state.accumulated()
    elif state is not None and not hasattr(state, "last"):
        for part in state:
            yield from _accumulated(part)
