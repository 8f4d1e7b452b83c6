"""The laws of the state protocol, for every family of the zoo, in every variant, at odd sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calls import GROWING
from seqzoo import laws
from seqzoo.models.zoo import FAMILIES
from seqzoo.ops.linear_scan import linear_scan, naive
from seqzoo.ops.registry import choose
from seqzoo.ops.tensors import float32_or_wider

VARIANTS = [(name, keys) for name in FAMILIES for keys in laws.variants(name)]
JOINED = [(name, keys) for name in FAMILIES for keys in laws.encoder_decoder_variants(name)]


def inputs(T: int, B: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, 16, dtype=dtype, generator=torch.Generator().manual_seed(T * 10 + B))


FORMS = [
    (name, keys, form)
    for name, keys in VARIANTS
    for form in laws.fast_forms(laws.example(name, **keys), inputs(65))
]


def label(value: object) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{k}.{v}" for k, v in value.items()) or "default"
    return str(value) if isinstance(value, int | tuple) else None


every_variant = pytest.mark.parametrize(("name", "keys"), VARIANTS, ids=label)


def at_sizes(cases: list[tuple[Any, ...]], *sizes: Any) -> pytest.MarkDecorator:
    """Each case, which begins with a family and its keys, at each size. The defaults of a family
    have all sizes by default, other variants and hybrids the first; the others are slow."""
    names = ("name", "keys", "form", "size") if len(cases[0]) == 3 else ("name", "keys", "size")
    found = []
    for case in cases:
        plain = not case[1] and FAMILIES[case[0]].mixer is not None
        for size in sizes:
            marks = () if plain or size == sizes[0] else pytest.mark.slow
            found.append(pytest.param(*case, size, marks=marks))
    return pytest.mark.parametrize(names, found, ids=label)


@at_sizes(VARIANTS, (65, 3), (2, 3), (63, 3), (64, 3), (65, 1), (257, 3))
def test_chunk_law(name: str, keys: dict, size: tuple[int, int]) -> None:
    T, B = size
    cuts = sorted({1, T // 3, T // 2, T - 1} & set(range(1, T)))
    assert laws.chunk_law(laws.example(name, **keys), inputs(T, B), cuts) <= 1e-9


@every_variant
def test_chunk_law_in_float32(name: str, keys: dict) -> None:
    f = laws.example(name, torch.float32, **keys)
    assert laws.chunk_law(f, inputs(257, dtype=torch.float32), [1, 85, 128, 256]) <= 1e-4


@every_variant
def test_chunk_law_token_by_token(name: str, keys: dict) -> None:
    T = 67
    assert laws.chunk_law(laws.example(name, **keys), inputs(T, 2), range(1, T)) <= 1e-9


@at_sizes(VARIANTS, (65, 32), (2, 0), (257, 130))
def test_causality(name: str, keys: dict, size: tuple[int, int]) -> None:
    T, t = size
    assert laws.causality(laws.example(name, **keys), inputs(T), t) == 0


@at_sizes(FORMS, 65, 1, 2, 63, 64, 257)
def test_definition_law(name: str, keys: dict, form: str, size: int) -> None:
    assert laws.definition_law(laws.example(name, **keys), inputs(size, 2), form) <= 1e-9


@at_sizes(FORMS, 65, 257)
def test_definition_law_in_float32(name: str, keys: dict, form: str, size: int) -> None:
    f = laws.example(name, torch.float32, **keys)
    assert laws.definition_law(f, inputs(size, 2, torch.float32), form) <= 1e-4


@every_variant
@pytest.mark.parametrize(
    "law", (laws.empty_state, laws.purity, laws.batch_first, laws.bounded_state)
)
def test_laws_of_the_state(name: str, keys: dict, law) -> None:
    assert law(laws.example(name, **keys), inputs(65)) <= 1e-9


@every_variant
def test_precision(name: str, keys: dict) -> None:
    f = laws.example(name, torch.float32, **keys)
    assert laws.precision(f, inputs(65, dtype=torch.float32)) == 0


@at_sizes(VARIANTS, (65, 33, 1), (2, 1, 1), (130, 64, 65))
def test_padding_law(name: str, keys: dict, size: tuple[int, ...]) -> None:
    assert laws.padding(laws.example(name, **keys), inputs(size[0]), size) <= 1e-9


@pytest.mark.parametrize(("name", "keys"), JOINED, ids=label)
def test_laws_after_a_source(name: str, keys: dict) -> None:
    """A decoder that starts from an encoded source is a state machine like any other, and its loss
    has a gradient in the encoder."""
    x = inputs(9)
    f = laws.example(name, **keys)
    for cuts in ([3, 4, 6], range(1, 9)):
        assert laws.chunk_law(f, x, cuts) <= 1e-9
    assert laws.causality(f, x, 4) == 0
    for form in laws.fast_forms(f, x):
        assert laws.definition_law(f, x, form) <= 1e-9
    for law in (laws.empty_state, laws.purity, laws.batch_first, laws.bounded_state):
        assert law(f, x) <= 1e-9
    assert laws.precision(f.float(), x.float()) == 0
    y, _ = f(x.float(), None)
    y.square().sum().backward()
    assert f.model.encoder.embedding.weight.grad.any()


@pytest.mark.parametrize(
    ("name", "attention"),
    [("retnet", "luong"), ("gated_deltanet", "dot"), ("mlstm", "luong"), ("lstm", "luong")],
)
def test_verify_allows_for_the_rounding_that_feedback_multiplies(name: str, attention: str) -> None:
    """In float32 an error above the tolerance is held against what the last bit of inputs and
    weights makes in the definition; of a model without such feedback that is far less."""
    keys = {"architecture": "encoder_decoder", "attention": attention}
    row = laws.measured(name, torch.float32, **keys)
    assert row.holds
    assert (row.allowed > laws.TOLERANCE[torch.float32]) == (name != "lstm")
    f = laws.example(name, torch.float32)
    assert 0 < laws.rounding(f, inputs(17, 3, torch.float32)) < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_under_autocast_are_not_rounded(name: str) -> None:
    """After 120 steps of one token, the state under autocast is close to the one in float32."""
    f = laws.example(name, torch.float32)
    x = inputs(120, 2, torch.float32)
    states = []
    for narrow in (False, True):
        state = None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            for t in range(120):
                _, state = f(x[:, t : t + 1], state)
        states.append(list(laws.leaves(state)))
    for exact, narrow in zip(*states, strict=True):
        scale = max(1.0, float(exact.float().abs().max()))
        assert float((exact.float() - narrow.float()).abs().max()) / scale < 0.1


def test_only_the_cache_grows() -> None:
    grows = {name for name in FAMILIES if laws.grows(laws.example(name)(inputs(1))[1])}
    assert grows == GROWING


# ---- the laws can fail: for each a mixer that no other law refuses


class LeakySum(nn.Module):
    """h_t = h_{t-1} / 2 + x_t W, which keeps every law. The state has a position too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(16, 16)

    def forward(self, x, state=None):
        zeros = x.new_zeros(len(x), 16), torch.zeros(len(x), dtype=torch.long)
        h, position = zeros if state is None else state
        return self.read(x, h, position)

    def read(self, x, h, position):
        (inputs,) = float32_or_wider(self.enter(x))
        hs = linear_scan(torch.full_like(inputs, 0.5), inputs, h)
        return hs.to(x.dtype), (hs[:, -1].clone(), position + x.shape[1])


class IgnoresItsState(LeakySum):
    def read(self, x, h, position):
        return super().read(x, torch.zeros_like(h), position)


class LooksAheadInPairs(LeakySum):
    """As a kernel whose mask is missing inside blocks of two tokens."""

    def read(self, x, h, position):
        y, state = super().read(x, h, position)
        ahead = torch.zeros_like(x)
        ahead[:, :-1:2] = x[:, 1::2]
        return y + ahead, state


class HasAnInexactFastForm(LeakySum):
    def read(self, x, h, position):
        y, state = super().read(x, h, position)
        exact = choose("linear_scan", x, x.shape[1]) is naive
        return y * (1 if exact else 1.001), state


class StartsFromOnes(LeakySum):
    def forward(self, x, state=None):
        ones = x.new_ones(len(x), 16), torch.zeros(len(x), dtype=torch.long)
        return super().forward(x, ones if state is None else state)


class WritesIntoItsState(LeakySum):
    def read(self, x, h, position):
        y, state = super().read(x, h, position)
        position += x.shape[1]
        return y, (state[0], position)


class HasALeafWithoutRows(LeakySum):
    """A table of rates among the state's leaves."""

    def forward(self, x, state=None):
        rates = torch.zeros(5) if state is None else state[2]
        y, own = super().forward(x, state and state[:2])
        return y, (*own, rates)


class RoundsItsState(LeakySum):
    def read(self, x, h, position):
        y, (h, position) = super().read(x, h, position)
        return y, (h.to(self.enter(x).dtype), position)


class MixesFirstTokens(LeakySum):
    """As a batch norm of the first token: rows of a fresh batch depend on each other."""

    def read(self, x, h, position):
        first = (position == 0)[:, None].to(x.dtype) * x[:, 0].mean(0)
        return super().read(torch.cat((x[:, :1] + first[:, None], x[:, 1:]), 1), h, position)


class KeepsAView(LeakySum):
    """Every state h_1 to h_T stays in memory as long as the last one."""

    def read(self, x, h, position):
        y, (_, position) = super().read(x, h, position)
        (inputs,) = float32_or_wider(self.enter(x))
        return y, (linear_scan(torch.full_like(inputs, 0.5), inputs, h)[:, -1], position)


MEASUREMENTS = {
    "chunks": lambda f, x: laws.chunk_law(f, x, [4]),
    "causality": lambda f, x: laws.causality(f, x, 2),
    "definition": lambda f, x: max(
        laws.definition_law(f, x, form) for form in laws.fast_forms(f, x)
    ),
    "empty state": laws.empty_state,
    "purity": laws.purity,
    "batch first": laws.batch_first,
    "precision": lambda f, x: laws.precision(f.float(), x.float()),
    "padding": lambda f, x: laws.padding(f, x, (8, 4, 6)),
    "bounded state": laws.bounded_state,
}
BROKEN = {
    IgnoresItsState: "chunks",
    LooksAheadInPairs: "causality",
    HasAnInexactFastForm: "definition",
    StartsFromOnes: "empty state",
    WritesIntoItsState: "purity",
    HasALeafWithoutRows: "batch first",
    RoundsItsState: "precision",
    MixesFirstTokens: "padding",
    KeepsAView: "bounded state",
}


@pytest.mark.parametrize("mixer", (LeakySum, *BROKEN), ids=lambda mixer: mixer.__name__)
def test_a_broken_mixer_breaks_one_law(mixer: type[LeakySum]) -> None:
    broken = {
        law
        for law, measure in MEASUREMENTS.items()
        if not measure(mixer().double(), inputs(8)) <= 1e-9
    }
    assert broken == ({BROKEN[mixer]} if mixer in BROKEN else set())


def test_every_law_refuses_a_mixer() -> None:
    assert set(BROKEN.values()) == set(MEASUREMENTS)
