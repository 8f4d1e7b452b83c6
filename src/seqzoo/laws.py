"""The laws of the state protocol, as measurements of how much a mixer breaks each.

The tests apply them to every family, and `seqzoo verify` on the user's machine. A law takes `f`,
which maps ``(x, state)`` to ``(y, state)`` with x (B, T, D), and returns the largest error,
relative to the largest value where that is above 1; infinity where a law without a tolerance is
broken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import torch
from torch import Tensor, nn

from seqzoo import ops
from seqzoo.config.schema import declared
from seqzoo.config.values import CACHE_POLICIES
from seqzoo.models.encoder_decoder import EncoderDecoder
from seqzoo.models.language_model import LanguageModel, run_layers
from seqzoo.models.zoo import build, declaration, family, model_keys
from seqzoo.ops.native import library
from seqzoo.state import State, grows, initial, leaves, map_leaves, nbytes, select

ONE_TOKEN = ("norm", "activation")  # choices that concern one token at a time
PATTERNS = (  # of hybrids: what a mixer hands on passes others by; residual and pre-norm blocks
    ("rwkv7", "transformer", "rwkv7"),
    ("mamba2", "gru", "rwkv4"),
)
NUMBERS: dict[str, tuple[Any, ...]] = {  # values of keys without a list of choices
    "n_kv_heads": (1,),
    "window": (5,),
    "softcap": (2.0,),
    "beta_max": (1.0, 2.0),
    "steps": (1, 2, 3),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
ROUNDINGS = 4  # times what the last bit of inputs and weights makes are allowed, where that is more


class Layers(nn.Module):
    """The layers of a language model without embedding and head, as the `f` of a law.

    The layers of a decoder start after a fixed source, with rows of different lengths where the
    model allows it.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        return run_layers(self.model.layers, x, self.encoded(x) if state is None else state)

    def encoded(self, x: Tensor) -> State:
        """The state of the encoded source; None without an encoder."""
        if not isinstance(self.model, EncoderDecoder):
            return None
        source = torch.arange(7, device=x.device).repeat(len(x), 1)
        equal = self.model.needs_equal_lengths
        return self.model.encode(source, [7 if equal else 7 - b % 3 for b in range(len(x))])

    def initial_state(self, x: Tensor) -> State:
        """The papers' initial state; with bridge=state it is the encoder's final state."""
        if isinstance(self.model, EncoderDecoder) and self.model.bridge == "state":
            return self.encoded(x)
        return initial(self(x[:, :1])[1])


# ---- what is measured


def variants(name: str) -> Iterator[dict[str, Any]]:
    """The keys of each variant of a family: its defaults, and on its own every value of every
    choice, every flag of its mixer, and some values of NUMBERS. Norms and the MLP's activation are
    left out, as they see one token at a time."""
    yield {}
    defaults = model_keys(name)
    for key, annotation in declaration(name).keys.items():
        if get_origin(annotation) is Literal and key not in ONE_TOKEN:
            yield from ({key: value} for value in get_args(annotation) if value != defaults[key])
    for key, values in NUMBERS.items():
        if key in defaults:
            yield from ({key: value} for value in values if value != defaults[key])
    mixer = family(name).mixer
    flags = {} if mixer is None else declared(mixer).keys
    yield from (
        {key: not defaults[key]} for key, kind in flags.items() if kind is bool and key in defaults
    )
    if "cache" in defaults:
        yield from ({"cache": f"{policy}:5"} for policy in CACHE_POLICIES)
    if name == "hybrid":
        yield from ({"pattern": list(pattern)} for pattern in PATTERNS)


def encoder_decoder_variants(name: str) -> Iterator[dict[str, Any]]:
    """The keys of each way to join a decoder of a family to an encoder."""
    yield {"architecture": "encoder_decoder"}
    yield {"architecture": "encoder_decoder", "bridge": "state"}
    for attention in ("bahdanau", "luong"):
        yield {"architecture": "encoder_decoder", "attention": attention}


def example(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **keys: Any) -> Layers:
    """Small layers of a family with random weights: the initial weights of some families are all
    zero."""
    torch.manual_seed(seed)
    known = model_keys(name)
    depth = len({**known, **keys}.get("pattern", "12"))  # of a hybrid, each layer of the pattern
    small: dict[str, Any] = {"dim": 16, "n_layers": depth, "n_heads": 2, "max_len": 600}
    model = build(name, vocab_size=11, **{k: v for k, v in small.items() if k in known}, **keys)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Layers(model).to(dtype).eval()


@torch.no_grad()
def fast_forms(f: nn.Module, x: Tensor) -> list[str]:
    """The forms, the definitions and those that round aside, of the operations that f uses; without
    kernels `native` is none."""
    with ops.recording() as recorded:
        f(x, None)
    table = ops.backends()
    used = {operation for operation, form in map(str.split, recorded) if form in table[operation]}
    exact = {
        form for operation in used for form, entry in table[operation].items() if not entry.rounded
    }
    return sorted(exact - ({"naive"} if library() else {"naive", "native"}))


# ---- the laws


def chunk_law(f: nn.Module, x: Tensor, cuts: Sequence[int]) -> float:
    """1. Any split of T, carried through the state, gives the same y, final state and gradients."""

    def in_parts(x: Tensor) -> tuple[Tensor, State]:
        ys, state = [], None
        for part in x.tensor_split(list(cuts), 1):
            if part.shape[1]:
                y, state = f(part, state)
                ys.append(y)
        return torch.cat(ys, 1), state

    return _difference(_run(f, lambda x: f(x, None), x), _run(f, in_parts, x))


def causality(f: nn.Module, x: Tensor, t: int) -> float:
    """2. y up to t does not depend on x after t: the gradient is exactly zero."""
    x = x.clone().requires_grad_()
    y, _ = f(x, None)
    (gradient,) = torch.autograd.grad(y[:, : t + 1].square().sum(), x)
    return math.inf if gradient[:, t + 1 :].any() else 0.0


def definition_law(f: nn.Module, x: Tensor, form: str) -> float:
    """3. A fast form gives the values and gradients of the naive definition."""
    with ops.backend("naive"):
        expected = _run(f, lambda x: f(x, None), x)
    with ops.backend(form):
        return _difference(expected, _run(f, lambda x: f(x, None), x))


@torch.no_grad()
def empty_state(f: nn.Module, x: Tensor) -> float:
    """4. None is the empty state: reading from it equals reading from the paper's initial state,
    and does not depend on what was read before."""
    first = f.initial_state(x) if isinstance(f, Layers) else initial(f(x[:, :1], None)[1])
    expected = f(x, first)
    f(x.flip(1), None)
    return _difference(list(leaves(expected)), list(leaves(f(x, None))))


@torch.no_grad()
def purity(f: nn.Module, x: Tensor) -> float:
    """5. An incoming state is never changed: two continuations of it are independent."""
    _, state = f(x, None)
    before = map_leaves(Tensor.clone, state)
    one, _ = f(x, state)
    f(x.flip(1), state)
    again, _ = f(x, state)
    same = all(torch.equal(a, b) for a, b in zip(leaves(before), leaves(state), strict=True))
    return 0.0 if same and torch.equal(one, again) else math.inf


@torch.no_grad()
def batch_first(f: nn.Module, x: Tensor) -> float:
    """6. Rows of the state are rows of the batch: to continue some of them alone makes no
    difference."""
    _, state = f(x, None)
    if any(leaf.shape[0] != x.shape[0] for leaf in leaves(state)):
        return math.inf
    rows = torch.arange(x.shape[0] - 1, -1, -2)
    alone, _ = f(x[rows], select(state, rows))
    y, _ = f(x, state)
    return _error(y[rows], alone)


@torch.no_grad()
def precision(f: nn.Module, x: Tensor) -> float:
    """7. Under bfloat16 autocast y has the dtype of x, and accumulating leaves are float32 or
    wider."""
    with torch.autocast(x.device.type, torch.bfloat16):
        y, state = f(x, None)
        y, state = f(x, state)
    narrow = any(t.is_floating_point() and t.element_size() < 4 for t in _accumulated(state))
    return math.inf if narrow or y.dtype != x.dtype else 0.0


@torch.no_grad()
def padding(f: nn.Module, x: Tensor, lengths: Sequence[int]) -> float:
    """8. In a batch whose rows have `lengths` valid tokens each, then padding, the valid outputs of
    a row, and its state after its own last valid token, are those of the row alone."""
    random = torch.Generator().manual_seed(3)
    padded = x.clone()
    for row, n in enumerate(lengths):
        noise = torch.randn(x[row, n:].shape, generator=random, dtype=x.dtype)
        padded[row, n:] = noise.to(x.device)
    y, _ = f(padded, None)
    errors = []
    for row, n in enumerate(lengths):
        one = torch.tensor([row], device=x.device)
        alone, state = f(x[one, :n], None)
        _, of_batch = f(padded[:, :n], None)  # split after the row's last valid token
        expected = [alone, *leaves(select(state, torch.zeros_like(one)))]
        errors.append(_difference(expected, [y[one, :n], *leaves(select(of_batch, one))]))
    return max(errors)


@torch.no_grad()
def bounded_state(f: nn.Module, x: Tensor) -> float:
    """9. The measured bytes do not depend on how much was read; those of a growing cache increase
    equally with every token. No leaf is a view of a larger tensor, but for a cache with room for
    the tokens to come."""
    sizes = []
    state = None
    for t in range(3):
        _, state = f(x[:, t : t + 1], state)
        sizes.append(nbytes(state))
    growth = sizes[1] - sizes[0]
    _, whole = f(x, None)
    expected = sizes[0] + growth * (x.shape[1] - 1)
    flat = growth == 0 or grows(state)
    kept = [leaf for leaf in leaves(whole) if not hasattr(leaf, "room")]
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage() for leaf in kept}
    if sum(storage.nbytes() for storage in storages.values()) > 1.1 * nbytes(tuple(kept)):
        return math.inf
    return 0.0 if flat and sizes[2] - sizes[1] == growth and nbytes(whole) == expected else math.inf


def rounding(f: nn.Module, x: Tensor) -> float:
    """How much the definition changes, in values and gradients, where inputs and weights change in
    their last bit: an error that no fast form can be blamed for. Feedback, as a stepwise decoder
    has it, multiplies it at every step."""
    random = torch.Generator().manual_seed(4)

    def rounded(t: Tensor) -> Tensor:
        signs = 2 * torch.randint(2, t.shape, generator=random).to(t) - 1
        return t * (1 + signs * torch.finfo(t.dtype).eps)

    changed = copy.deepcopy(f)
    with ops.backend("naive"):
        own = _run(f, lambda x: f(x, None), x)
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.copy_(rounded(parameter))
        return _difference(own, _run(changed, lambda x: changed(x, None), rounded(x)))


# ---- the report of `seqzoo verify`


class Row(NamedTuple):
    """The errors of one variant in one precision.

    Attributes:
        variant: such as `lstm block=classic`.
        errors: of each law that `verify` measures; infinity where it is broken outright.
        allowed: the largest error with which a law holds.
    """

    variant: str
    dtype: torch.dtype
    errors: dict[str, float]
    allowed: float

    @property
    def holds(self) -> bool:
        return max(self.errors.values()) <= self.allowed


def report(names: Iterable[str]) -> Iterator[Row]:
    """Measure laws 1 to 6 and 9 for families, in every variant and with every kind of encoder, in
    float64 and float32."""
    for name in names:
        for keys in (*variants(name), *encoder_decoder_variants(name)):
            for dtype in TOLERANCE:
                yield measured(name, dtype, **keys)


def measured(name: str, dtype: torch.dtype, **keys: Any) -> Row:
    """The errors of one variant of a family in one precision."""
    # Shorter with an encoder: a stepwise decoder multiplies rounding errors at every step.
    T = 17 if "architecture" in keys else 65
    f = example(name, dtype, **keys)
    torch.manual_seed(1)
    x = torch.randn(3, T, 16, dtype=dtype)
    errors, allowed = _errors(f, x), TOLERANCE[dtype]
    if allowed < max(errors.values()) < math.inf:
        allowed = max(allowed, ROUNDINGS * rounding(f, x))
    variant = " ".join([name, *(f"{k}={v}" for k, v in keys.items())])
    return Row(variant, dtype, errors, allowed)


def _errors(f: nn.Module, x: Tensor) -> dict[str, float]:
    T = x.shape[1]
    return {
        "chunks": max(chunk_law(f, x, cuts) for cuts in ([1], [T // 2], [1, 2, T - 8])),
        "causal": causality(f, x, T // 2),
        "definition": max((definition_law(f, x, form) for form in fast_forms(f, x)), default=0.0),
        "empty": empty_state(f, x),
        "purity": purity(f, x),
        "batch": batch_first(f, x),
        "bounded": bounded_state(f, x),
    }


def verify(names: Iterable[str]) -> bool:
    """Print the report.

    Returns:
        Whether all laws hold.
    """
    all_hold, variant = True, None
    for row in report(names):
        if variant is None:
            print(" " * 10 + "".join(f"{law:>11}" for law in row.errors))
        if row.variant != variant:
            variant = row.variant
            print(variant)
        cells = "".join(f"{_shown(error):>11}" for error in row.errors.values())
        mark = "" if row.holds else "   <- broken"
        if row.allowed > TOLERANCE[row.dtype]:
            mark += f"   {row.allowed:.0e} allowed: {ROUNDINGS} times what the last bit makes"
        print(f"  {str(row.dtype)[6:]:<8}{cells}{mark}", flush=True)
        all_hold &= row.holds
    limits = ", ".join(f"{limit:g} in {str(dtype)[6:]}" for dtype, limit in TOLERANCE.items())
    print(f"\n{'All laws hold' if all_hold else 'A law is broken'} (errors allowed: {limits}).")
    return all_hold


def _shown(error: float) -> str:
    return "exact" if error == 0 else "BROKEN" if error == math.inf else f"{error:.0e}"


# ---- how errors are measured


def _run(f: nn.Module, read: Callable[[Tensor], tuple[Tensor, State]], x: Tensor) -> list[Tensor]:
    """y, the final state, and the gradients of a fixed mixture of both with respect to x and every
    parameter."""
    x = x.clone().requires_grad_()
    y, state = read(x)
    outputs = [y, *(leaf for leaf in leaves(state) if leaf.is_floating_point())]
    random = torch.Generator().manual_seed(2)
    mixture = sum(
        (torch.randn(o.shape, generator=random, dtype=torch.float64).to(o) * o).sum()
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
    expected, given = expected.double(), given.double()  # of any dtype: positions and masks too
    error = float((expected - given).abs().max() / max(1.0, float(expected.abs().max())))
    return error if math.isfinite(error) else math.inf


def _accumulated(state: State) -> Iterator[Tensor]:
    """The leaves that accumulate: all, but for parts that grow, and parts that list theirs."""
    if isinstance(state, Tensor):
        yield state
    elif hasattr(state, "accumulated"):
        yield from state.accumulated()
    elif state is not None and not hasattr(state, "last"):
        for part in state:
            yield from _accumulated(part)
