"""FLOPs against counts by hand, from the equations of the papers."""

from pathlib import Path

import pytest
import torch

import seqzoo
from calls import status
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


def mlstm(t: int) -> int:
    """Beck et al. 2024, section 2.3 and figure 11: two branches of E = 2 D and the output, gates of
    each head from E numbers before and after the convolution (as the matrices that make q, k and v
    from them are of blocks of four, like the convolution not counted), and a memory of K x (K + 1)
    numbers, n with it, written and read."""
    E, K = 2 * D, 2 * D // H
    return L * (3 * D * E + 2 * E * 2 * H + 2 * H * K * (K + 1)) + HEAD


COUNTS = {"transformer": transformer, "lstm": lstm, "gla": gla, "mlstm": mlstm}
SIZES = dict.fromkeys(COUNTS, {"mlp_ratio": R}) | {"mlstm": {"n_heads": H}}


@pytest.mark.parametrize("name", COUNTS)
def test_a_token(name: str) -> None:
    model = build(name, vocab_size=V, dim=D, n_layers=L, **SIZES[name]).eval()
    flops = flops_of_token(model)
    for t in (1, 2, 100):
        assert flops.at(t) == 2 * COUNTS[name](t)


@pytest.mark.parametrize("name", COUNTS)
def test_training(name: str) -> None:
    """Three forward passes, in the mean over the tokens of a sequence."""
    model = build(name, vocab_size=V, dim=D, n_layers=L, **SIZES[name]).eval()
    mean = sum(COUNTS[name](t) for t in range(1, 33)) / 32
    assert flops_of_training(model, 32) == pytest.approx(3 * 2 * mean)


@pytest.mark.parametrize("name", FAMILIES)
def test_reading_at_once(name: str) -> None:
    """A family with a bounded state computes the same for every token, so no more for many at once;
    one with a mask also computes what it hides."""
    model = seqzoo.build(name, vocab_size=V, dim=D, n_layers=L).eval()
    flops = flops_of_token(model)
    parallel, mean = flops_per_token(model, 16), flops.total(16) / 16
    if name in COUNTS and not model.state_grows:
        assert parallel == mean
    assert parallel <= mean if flops.at(1) == flops.at(16) else parallel >= mean


def test_a_run_tells_its_share_of_the_peak(
    tmp_path: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is measured after runs that took long; here after any."""
    from seqzoo.training import training
    from seqzoo.training.peak import Peak

    monkeypatch.setattr(training, "measure_peak", lambda *_, **__: Peak(1e12, ""))
    keys = ["model=gla", f"task.path={text_file}", "model.dim=32", "trainer.max_steps=2"]
    keys += ["task.seq_len=16", "task.sample_tokens=5", "trainer.device=cpu"]
    assert status("train", *keys, f"hydra.run.dir={tmp_path / 'a'}") == 0
    assert "GFLOP/s" not in capfd.readouterr().out
    monkeypatch.setattr(training, "WORTH_A_PEAK", 0.0)
    assert status("train", *keys, f"hydra.run.dir={tmp_path / 'b'}") == 0
    run = seqzoo.load(tmp_path / "b")
    found = run.summary
    assert found["flops_per_token"] == flops_of_training(run.model, 16)
    rate = found["flops_per_token"] * found["tokens_per_second"]
    assert found["flops_per_second"] == pytest.approx(rate, rel=1e-3)
    assert found["peak_share"] == pytest.approx(rate / 1e12, abs=1e-4)
    assert f"GFLOP/s ({100 * found['peak_share']:.0f} % of the peak)\n" in capfd.readouterr().out


def test_the_peak_is_that_of_large_products() -> None:
    from seqzoo.training.peak import measure_peak

    peak = measure_peak(torch.device("cpu"), "float32", seconds=0.0)
    assert peak.flops > 1e9 and peak.measured_by == "2048 x 2048 matrix product, median of 3"
