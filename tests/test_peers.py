"""scripts/peers: every kind of pair at tiny sizes, where its peer is installed; the GPT written for
it; and the command."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "scripts" / "peers"
KINDS = ("lstm", "mingru", "rwkv4", "llama", "delta-32", "linear-attention", "rwkv4-decoding")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("RWKV_JIT_ON", "RWKV_CUDA_ON", "RWKV_V7_ON"):  # set for the rwkv package
        monkeypatch.setenv(name, "0")


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")  # of theirs
def test_pair(name: str) -> None:
    bench, timing = module("bench"), module("timing")
    pair = bench.PAIRS[name]
    if lacks := pair.missing():
        pytest.skip(lacks)
    options = timing.Options(rounds=2, seconds=0.001, tiny=True)
    rows = bench.load(pair.function)(options, **pair.keys)
    assert rows
    for row in rows:
        assert len(row.ours) == len(row.theirs) == options.rounds
        assert min(*row.ours, *row.theirs) > 0
        assert len(row.cells()) == len(timing.HEAD)


@pytest.mark.parametrize("bias", (False, True))
def test_gpt(bias: bool) -> None:
    V, L, D, T = 11, 2, 16, 9
    torch.manual_seed(0)
    model = module("nanogpt").GPT(vocab_size=V, n_layers=L, dim=D, n_heads=4, max_len=T, bias=bias)
    matrices, norms = 12 * D * D, 2 * D
    biases = 3 * D + D + 4 * D + D + 2 * D if bias else 0
    expected = V * D + T * D + L * (matrices + norms + biases) + D * (1 + bias)
    assert sum(p.numel() for p in model.parameters()) == expected
    tokens = torch.randint(V, (2, T + 1))
    logits = model(tokens[:, :-1])
    changed = tokens[:, :-1].clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % V
    assert torch.equal(model(changed)[:, :5], logits[:, :5])
    assert not torch.allclose(model(changed)[:, 5:], logits[:, 5:])
    picked = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
    torch.testing.assert_close(model(tokens[:, :-1], tokens[:, 1:]), -picked.sum())


def test_ratio() -> None:
    Row = module("timing").Row
    assert Row("work", "tok/s", "peer", [200.0, 300.0], [100.0, 100.0]).ratios == [2, 3]
    assert Row("work", "ms", "peer", [1.0], [2.0]).ratios == [2]
    cells = Row("work", "ms", "peer", [1.0, 2.0, 3.0], [4.0, 4.0, 4.0], "note").cells()
    assert cells == ["work", "ms", "2.00 ± 25 %", "4.00 ± 0 %", "peer", "2.00", "1.67-3.00", "note"]


def test_products_are_all_matrices() -> None:
    import seqzoo

    decoding = module("decoding_pairs")
    for name in ("transformer", "lstm", "rwkv6", "deltanet"):
        model = seqzoo.build(name, vocab_size=65, dim=64, n_layers=2)
        multiplied = sum(W.numel() for W in decoding.matrices(model))
        rest = model.n_parameters() - multiplied - 65 * 64  # the embedding is read
        assert 0 < rest < 0.05 * model.n_parameters(), name


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "new" / "peers.md"
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = subprocess.run(
        [sys.executable, FOLDER / "bench.py", "--tiny", "--rounds=1", "--threads=1"]
        + ["--only", "lstm", "gpt-4x128", f"--out={report}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    about, table, skipped, notes = report.read_text().split("\n\n")
    assert f"torch {torch.__version__}" in about and "1 threads" in about
    head, rule, row = table.splitlines()
    assert head.startswith("| work | unit | seqzoo | peer |") and set(rule) == set("| -")
    assert row.startswith("| train LSTM 2x32 B2 T16 | tok/s | ")
    assert skipped.startswith("- gpt-4x128: skipped: no C++ compiler (no-such-compiler)")
    assert notes.startswith("A figure is the median over rounds")

    with pytest.raises(SystemExit):
        module("bench").main(["--only", "lsmt"])
    assert "--only lsmt: choose of gpt-4x128, " in capsys.readouterr().err
