"""FLOPs against counts by hand, from the equations of the papers."""

import pytest

import seqzoo
from seqzoo.models.cost import flops_of_token, flops_of_training, flops_per_token
from seqzoo.models.zoo import FAMILIES, build

D, V, L, R = 48, 65, 3, 4  # width, vocabulary, layers, width of the MLP in D
H = 4  # heads
HEAD, MLP = D * V, 2 * R * D * D  # multiply-adds a token: of the output, of one layer's MLP


def transformer(t: int) -> int:
    """Vaswani et al. 2017, section 3.2: token t. Queries, keys, values and output are D x D; its
    query meets t keys of D numbers (all heads together), and t values are summed."""
    return L * (4 * D * D + 2 * t * D + MLP) + HEAD


def lstm(t: int) -> int:
    """Hochreiter and Schmidhuber 1997 with a forget gate: three gates and a candidate, each from
    x (D x D) and from h (D x D)."""
    return L * (4 * (D * D + D * D) + MLP) + HEAD


def gla(t: int) -> int:
    """Yang et al. 2023, eq. 3 and section 4.4: queries and keys D x D/2, values, gate and output
    D x D, decays by way of 16 numbers. Each head writes k v^T into K x V numbers and reads them by
    q, with K = D / 2H, V = D / H."""
    memory = H * (D // (2 * H)) * (D // H)
    return L * (D * D + 3 * D * D + 16 * (D + D // 2) + 2 * memory + MLP) + HEAD


COUNTS = {"transformer": transformer, "lstm": lstm, "gla": gla}


@pytest.mark.parametrize("name", COUNTS)
def test_a_token(name: str) -> None:
    model = build(name, vocab_size=V, dim=D, n_layers=L, mlp_ratio=R).eval()
    first, growth = flops_of_token(model)
    for t in (1, 2, 100):
        assert first + (t - 1) * growth == 2 * COUNTS[name](t)


@pytest.mark.parametrize("name", COUNTS)
def test_training(name: str) -> None:
    """Three forward passes, in the mean over the tokens of a sequence."""
    model = build(name, vocab_size=V, dim=D, n_layers=L, mlp_ratio=R).eval()
    mean = sum(COUNTS[name](t) for t in range(1, 33)) / 32
    assert flops_of_training(model, 32) == pytest.approx(3 * 2 * mean)


@pytest.mark.parametrize("name", FAMILIES)
def test_reading_at_once_costs_no_less(name: str) -> None:
    """A family with a bounded state computes the same for every token, so also for many at once;
    one with a mask computes what it hides, too."""
    model = seqzoo.build(name, vocab_size=V, dim=D, n_layers=L).eval()
    first, growth = flops_of_token(model)
    parallel = flops_per_token(model, 16)
    assert parallel == first if growth == 0 else parallel >= first + growth * 15 / 2
