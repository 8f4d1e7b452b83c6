"""Caches of a fixed size, against plain implementations of their papers."""

import contextlib
import io
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import seqzoo
from calls import status
from seqzoo.config.values import CACHE_POLICIES, N_SINKS, cache_policy
from seqzoo.ops.attention import causal_attention
from seqzoo.ops.bounded_cache import CachePolicy, attend, empty

H, T, K = 4, 23, 6


def inputs(G: int = H) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(2, H, T, K, dtype=torch.float64),
        torch.randn(2, G, T, K, dtype=torch.float64),
        torch.randn(2, G, T, K, dtype=torch.float64),
    )


@pytest.mark.parametrize("name", CACHE_POLICIES)
@pytest.mark.parametrize("reading", ("tokens", "prompt"))
@pytest.mark.parametrize("G", (1, 2, 4))
def test_a_cache_that_holds_everything_changes_nothing(name: str, reading: str, G: int) -> None:
    q, k, v = inputs(G)
    policy = CachePolicy(name, T, reading)
    y, cache = attend(policy, q, k, v, empty(policy, k))
    assert_close(y, causal_attention(q, k, v))
    assert_close(cache.k, k)


def plain(name: str, size: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One row, token by token, with lists."""
    ys = torch.empty_like(q)
    kept = [[] for _ in range(H)]  # positions, a head
    scores = [dict() for _ in range(H)]
    for t in range(T):
        weights = []
        for h in range(H):
            kept[h].append(t)
            scores[h][t] = 0.0
            w = F.softmax(k[h, kept[h]] @ q[h, t] / math.sqrt(K), 0)
            ys[h, t] = w @ v[h, kept[h]]
            weights.append(dict(zip(kept[h], w.tolist(), strict=True)))
            for position in kept[h]:
                scores[h][position] += weights[h][position]
        for h in range(H):
            if len(kept[h]) <= size:
                continue
            if name == "window":
                goes = kept[h][0]
            elif name == "sinks":
                goes = next(p for p in kept[h] if p >= N_SINKS)
            elif name == "tova":
                goes = min(kept[h], key=lambda p: sum(one[p] for one in weights))
            else:  # h2o: the newest half stays
                goes = min((p for p in kept[h] if p <= t - size // 2), key=lambda p: scores[h][p])
            kept[h].remove(goes)
    return ys


@pytest.mark.parametrize("name", ("window", "sinks", "tova", "h2o"))
@pytest.mark.parametrize("size", (6, 11))
def test_what_is_kept(name: str, size: int) -> None:
    q, k, v = inputs()
    policy = CachePolicy(name, size, "tokens")
    y, cache = attend(policy, q, k, v, empty(policy, k))
    for row in range(2):
        assert_close(y[row], plain(name, size, q[row], k[row], v[row]))
    assert cache.k.shape[2] == size and not hasattr(cache, "last")


def test_a_prompt_is_cut_once() -> None:
    """With `prompt` the outputs are those of full attention, and the last query decides what is
    kept."""
    q, k, v = inputs()
    policy = CachePolicy("tova", 5, "prompt")
    y, cache = attend(policy, q, k, v, empty(policy, k))
    assert_close(y, causal_attention(q, k, v))
    last = (q[:, :, -1:] @ k.mT / math.sqrt(K)).softmax(-1).mean(1)[:, 0]
    assert_close(cache.slot[:, 0], last.topk(5).indices.sort().values)


def test_random_keeps_a_sample_of_everything() -> None:
    torch.manual_seed(0)
    policy = CachePolicy("random", 200, "tokens")
    zeros = torch.zeros(1, 1, 2000, 2)
    _, cache = attend(policy, zeros, zeros, zeros, empty(policy, zeros))
    quarter = [
        int(((cache.slot >= at) & (cache.slot < at + 500)).sum()) for at in range(0, 2000, 500)
    ]
    assert min(quarter) > 30 and max(quarter) < 70


def test_a_model_with_a_bounded_cache_has_a_flat_state() -> None:
    model = seqzoo.build("transformer", vocab_size=9, dim=16, n_heads=2, n_layers=2, cache="tova:5")
    _, one = model(torch.zeros(1, 1, dtype=torch.long))
    _, many = model(torch.zeros(1, 40, dtype=torch.long))
    assert seqzoo.nbytes(one) == seqzoo.nbytes(many)
    assert not model.state_grows


@pytest.mark.parametrize("text", ("tova", "tova:0", "tova:x", "lru:4", "tova:4:all", ":4"))
def test_policies_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tova:256"):
        cache_policy(text)


def test_commands_take_a_cache(tmp_path: Path, text_file: Path) -> None:
    """A cache as large as the window changes no number, a small one does, and a model without one
    refuses the option."""

    def measured(out: str) -> float:
        (line,) = (line for line in out.splitlines() if line.split()[:1] == ["val/loss"])
        return float(line.split()[1])

    small = ["model.dim=16", "model.n_layers=1", "trainer.max_steps=60", "trainer.eval_every=null"]
    small += ["optim.lr=0.02", "schedule.warmup_steps=5", "trainer.dtype=float32"]
    small += ["task.val_max_chars=600", "task.seq_len=32", f"task.path={text_file}"]
    for model in ("transformer", "lstm"):
        folder = f"hydra.run.dir={tmp_path / model}"
        assert status("train", f"model={model}", "task=charlm", *small, folder) == 0

    def evaluate(*more: str) -> float:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert status("eval", tmp_path / "transformer", "--device", "cpu", *more) == 0
        return measured(out.getvalue())

    whole = evaluate()
    assert evaluate("--cache", "tova:32") == pytest.approx(whole, abs=2e-4)
    assert abs(evaluate("--cache", "window:1") - whole) > 5e-4
    assert status("generate", tmp_path / "transformer", "--cache", "h2o:8", "--tokens", 9) == 0
    assert status("eval", tmp_path / "lstm", "--cache", "tova:8") == 2
    assert status("eval", tmp_path / "transformer", "--cache", "lru:8") == 2
