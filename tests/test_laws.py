"""The laws of the state protocol, for every family of the zoo, in every variant, at odd sizes."""

import pytest
import torch

from seqzoo import laws, ops
from seqzoo.models.zoo import FAMILIES

LENGTHS = (1, 2, 63, 64, 65, 257)
VARIANTS = [(name, keys) for name in FAMILIES for keys in laws.variants(name)]
FORMS = sorted({form for forms in ops.BACKENDS.values() for form in forms} - {"naive"})


def label(value: object) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{k}.{v}" for k, v in value.items()) or "default"
    return None


every_variant = pytest.mark.parametrize(("name", "keys"), VARIANTS, ids=label)
every_size = pytest.mark.parametrize("T", LENGTHS, ids="T{}".format)
every_batch = pytest.mark.parametrize("B", (1, 3), ids="B{}".format)


def inputs(T: int, B: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(B, T, 16, dtype=dtype, generator=torch.Generator().manual_seed(T * 10 + B))


@every_variant
@every_size
@every_batch
def test_chunk_law(name: str, keys: dict, T: int, B: int) -> None:
    for dtype, tolerance in laws.TOLERANCE.items():
        f = laws.example(name, dtype, **keys)
        cuts = sorted({1, T // 3, T // 2, T - 1} & set(range(1, T)))
        assert laws.chunk_law(f, inputs(T, B, dtype), cuts) <= tolerance


@every_variant
def test_chunk_law_token_by_token(name: str, keys: dict) -> None:
    T = 67
    f = laws.example(name, **keys)
    assert laws.chunk_law(f, inputs(T), list(range(1, T))) <= 1e-9


@every_variant
@every_size
def test_causality(name: str, keys: dict, T: int) -> None:
    f = laws.example(name, **keys)
    assert laws.causality(f, inputs(T), T // 2) == 0


@every_variant
@every_size
@pytest.mark.parametrize("form", FORMS)
def test_definition_law(name: str, keys: dict, T: int, form: str) -> None:
    for dtype, tolerance in laws.TOLERANCE.items():
        f = laws.example(name, dtype, **keys)
        assert laws.definition_law(f, inputs(T, dtype=dtype), form) <= tolerance


@every_variant
@every_batch
@pytest.mark.parametrize(
    "law", (laws.empty_state, laws.purity, laws.batch_first, laws.bounded_state)
)
def test_laws_of_the_state(name: str, keys: dict, B: int, law) -> None:
    f = laws.example(name, **keys)
    assert law(f, inputs(65, B)) <= 1e-9


@pytest.mark.parametrize(
    ("name", "keys"), [(name, keys) for name in FAMILIES for keys in laws.joints(name)], ids=label
)
def test_laws_behind_a_source(name: str, keys: dict) -> None:
    """A decoder that begins with an encoded source is a state machine like any other, and what it
    says moves its encoder."""
    x = inputs(17, 3)
    f = laws.example(name, **keys)
    for cuts in ([1], [5, 6, 11], list(range(1, 17))):
        assert laws.chunk_law(f, x, cuts) <= 1e-9
    assert laws.causality(f, x, 8) == 0
    for form in FORMS:
        assert laws.definition_law(f, x, form) <= 1e-9
    for law in (laws.empty_state, laws.purity, laws.batch_first, laws.bounded_state):
        assert law(f, x) <= 1e-9
    assert laws.precision(f.float(), x.float()) == 0
    y, _ = f(x.float(), None)
    y.square().sum().backward()
    assert f.model.encoder.embedding.weight.grad.any()


@every_variant
def test_precision(name: str, keys: dict) -> None:
    f = laws.example(name, torch.float32, **keys)
    assert laws.precision(f, inputs(65, dtype=torch.float32)) == 0


@every_variant
@every_size
def test_padding_law(name: str, keys: dict, T: int) -> None:
    f = laws.example(name, **keys)
    assert laws.padding(f, inputs(T), max(1, T - 5)) <= 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_under_autocast_are_not_rounded(name: str) -> None:
    """A state that takes small steps token by token stays close to the one of float32."""
    f = laws.example(name, torch.float32)
    x = inputs(120, dtype=torch.float32)
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
    assert grows == {"transformer"}


def test_a_broken_mixer_is_caught() -> None:
    """The laws can fail: a mixer that looks ahead, forgets its state, or writes into it breaks
    them."""

    class LooksAhead(torch.nn.Module):
        def forward(self, x, state=None):
            return x + x.mean(1, keepdim=True), (x[:, -1],)

    class Forgets(torch.nn.Module):
        def forward(self, x, state=None):
            return x.cumsum(1), (x.sum(1),)

    class WritesInPlace(torch.nn.Module):
        def forward(self, x, state=None):
            total = torch.zeros_like(x[:, 0]) if state is None else state[0]
            y = x.cumsum(1) + total[:, None]
            return y, (total.add_(x.sum(1)),)

    x = inputs(8)
    assert laws.causality(LooksAhead(), x, 3) > 0
    assert laws.chunk_law(Forgets(), x, [3]) > 1e-3
    assert laws.purity(WritesInPlace(), x) > 0
