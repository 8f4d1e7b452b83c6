"""Inspection: weights that reproduce an operation's output, gradients, words in contexts, files."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import seqzoo
from calls import status
from seqzoo import ops
from seqzoo.analysis.inspect import contexts, figures, write
from seqzoo.analysis.inspect.measure import attention_weights, dependence, sensitivity
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.mixers.linear_attention import LinearAttention
from seqzoo.models.zoo import FAMILIES, layers, model_keys
from seqzoo.ops.attention import causal_attention
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.wkv4 import EMPTY, WKVState, wkv4
from seqzoo.tasks import alignment


def test_attention_weights_give_the_output() -> None:
    q, k, v = (torch.randn(1, 2, 9, 4) for _ in range(3))
    with ops.watching() as calls:
        y = causal_attention(q, k, v)
    torch.testing.assert_close(calls[0]() @ v[0], y[0])


@pytest.mark.parametrize("delta", (False, True))
def test_matrix_state_weights_give_the_output(delta: bool) -> None:
    q, k, v = (torch.randn(1, 2, 70, n) for n in (4, 4, 5))
    k = torch.nn.functional.normalize(k, dim=-1)
    more = {"a": -0.5 * k, "b": k} if delta else {}
    decay = -torch.rand(1, 2, 70, 4)
    with ops.watching() as calls:
        y, _ = matrix_state(q, k, v, torch.zeros(1, 2, 4, 5), decay, **more)
    torch.testing.assert_close(calls[0]() @ v[0], y[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", ("none", "rope"))
def test_linear_attention_weights_give_the_output(position: str) -> None:
    """One map a layer, normalised: its rows sum to one."""
    keys = {"feature": "elu", "decay": "retention", "normaliser": "sum", "chunk": 64}
    mixer = LinearAttention(dim=8, n_heads=2, position=position, **keys)
    x = torch.randn(1, 70, 8)
    with ops.watching() as calls:
        y, _ = mixer(x)
    (weights,) = (call() for call in calls)
    v = mixer.qkv(x).view(1, 70, 3, 2, 4)[0, :, 2].transpose(0, 1)
    torch.testing.assert_close(mixer.out((weights @ v).transpose(0, 1).flatten(1)), y[0])
    if position == "none":
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 70))


def test_wkv4_weights_give_the_output() -> None:
    k, v = torch.randn(1, 40, 6), torch.randn(1, 40, 6)
    zeros = torch.zeros(1, 6)
    state = WKVState(zeros, zeros, torch.full((1, 6), EMPTY))
    with ops.watching() as calls:
        y, _ = wkv4(k, v, -torch.rand(6), torch.randn(6), state)
    weights = calls[0]()  # (D, T, T)
    torch.testing.assert_close(torch.einsum("dts,sd->td", weights, v[0]), y[0])
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 40))


@pytest.mark.parametrize("name", FAMILIES)
def test_dependence_is_the_gradient(name: str) -> None:
    """Against a difference of losses, where the embedding of one token is moved a little."""
    torch.manual_seed(0)
    model = seqzoo.build(name, vocab_size=11, dim=16, n_layers=2).double().eval()
    for parameter in model.parameters():  # some families begin with matrices of zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    text = torch.randint(11, (1, 8))
    text[0, 2] = 10  # a token that is there once
    text[0, [0, 1, 3, 4, 5, 6, 7]] %= 10
    norm = float(dependence(model, text)[7 - 1 - 2])
    loss = lambda: torch.nn.functional.cross_entropy(model(text[:, :-1])[0][:, -1], text[:, -1])  # noqa: E731
    row, gradient = model.embedding.weight.data[10], []
    for i in range(16):
        row[i] += 1e-6
        above = loss().item()
        row[i] -= 2e-6
        gradient.append((above - loss().item()) / 2e-6)
        row[i] += 1e-6
    if model.head.weight is not model.embedding.weight:
        assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-3)


def test_the_last_row_of_sensitivity_is_dependence() -> None:
    model = seqzoo.build("gru", vocab_size=11, dim=16, n_layers=2).eval()
    text = torch.randint(11, (1, 8))
    rows = sensitivity(model, text)
    torch.testing.assert_close(rows[-1].flip(0), dependence(model, text))
    assert not rows.triu(1).any()


TEXTS = ["ab the cat, the dog", "the cat saw the cat", "dog saw the dog the"]


def test_words_of_characters() -> None:
    """A word ends at its last letter; what touches the border of a text may be cut."""
    tokenizer = Tokenizer.train("char", TEXTS)
    names, ends = contexts.word_ends(tokenizer, np.stack([tokenizer.encode(t) for t in TEXTS]))
    for text, row in zip(TEXTS, ends, strict=True):
        found = {int(t): names[row[t]] for t in np.flatnonzero(row >= 0)}
        expected = {m.end() - 1: m[0] for m in re.finditer(r"\w+", text)}
        assert found == dict(list(expected.items())[1:-1])


def test_a_token_of_a_bpe_vocabulary_is_a_word() -> None:
    tokenizer = Tokenizer.train("bpe", TEXTS, vocab_size=260)
    tokens = np.arange(6).reshape(2, 3)
    names, ends = contexts.word_ends(tokenizer, tokens)
    assert np.array_equal(ends, tokens) and len(names) == tokenizer.vocab_size


@pytest.mark.parametrize("name", FAMILIES)
def test_distances_of_words_in_contexts(name: str) -> None:
    """Against cosines of the single vectors; an embedding does not depend on the context, and
    every family's head reads what does."""
    torch.manual_seed(0)
    model = seqzoo.build(name, vocab_size=5, dim=16, n_layers=2).double().eval()
    for parameter in model.parameters():  # some families begin with matrices of zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    tokens = torch.randint(5, (3, 12))
    words = torch.where(tokens < 2, tokens, -1)
    stages, to_mean, between, random = contexts.distances(model, tokens, words, 2)
    assert stages[0] == "embedding" and stages[-1] == "head input"
    assert [stage for stage in stages if stage.startswith("layer")] == ["layer 0", "layer 1"]
    assert to_mean.shape == between.shape == (2, len(stages))
    assert to_mean[:, 0].max() < 1e-9 and (to_mean[:, -1] > 1e-6).all()
    with contexts.stage_outputs([model.norm_out]) as outputs:
        model(tokens)
    every = outputs[0].flatten(0, 1)
    for word, vectors in enumerate((every[words.flatten() == 0], every[words.flatten() == 1])):
        mean = vectors.mean(0, keepdim=True)
        expected = (1 - torch.cosine_similarity(vectors, mean)).mean()
        torch.testing.assert_close(to_mean[word, -1], expected)
        torch.testing.assert_close(between[word, -1], pairs(vectors))
    torch.testing.assert_close(random[-1], pairs(every))


def pairs(vectors: torch.Tensor) -> torch.Tensor:
    """The mean of 1 - cos over all pairs of different rows."""
    cosine = torch.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    return (1 - cosine)[~torch.eye(len(vectors), dtype=torch.bool)].mean()


@pytest.mark.parametrize("name", FAMILIES)
def test_families_with_weights(name: str) -> None:
    """A map a layer, of every family but those whose state is not a weighted sum."""
    model = seqzoo.build(name, vocab_size=5, dim=16, n_layers=2).eval()
    maps = attention_weights(model, torch.zeros(1, 6, dtype=torch.long))
    without = ("rnn", "lstm", "gru", "mingru", "minlstm", "rglru", "slstm")
    families = [own["name"] for _, own in layers(model_keys(name, n_layers=2))]
    expected = [(6, 6) for family in families if family not in without]
    assert [weights.shape[1:] for weights in maps.values()] == expected


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_inspect_command(
    name: str,
    tmp_path: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["task.seq_len=16", "task.batch_size=2", "task.sample_tokens=5", "trainer.max_steps=2"]
    keys = ["model.dim=16", "model.n_layers=2", f"task.path={text_file}", "hydra.run.dir=run"]

    assert status("train", f"model={name}", *small, *keys) == 0
    capfd.readouterr()
    with monkeypatch.context() as patched:
        drawn = []
        draw = figures.figures
        patched.setattr(write, "figures", lambda *given: drawn.append(draw(*given)) or drawn[0])
        assert status("inspect", "run", "--length", "24", "--texts", "2") == 0
    for figure in drawn[0].values():
        assert all(axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>")
    for axes in drawn[0]["embeddings"].axes:
        names = [text.get_window_extent() for text in axes.texts]
        assert names and not any(a.overlaps(b) for a, b in combinations(names, 2))
    printed = capfd.readouterr().out.split()
    assert len(printed) == {"gru": 5, "transformer": 6}[name] and all(
        Path(path).stat().st_size for path in printed
    )
    numbers = json.loads(Path("run/inspect/inspect.json").read_text())
    assert len(numbers["loss_by_position"]) == len(numbers["dependence"]["trained"]) == 24
    measured = numbers["contexts"]
    assert measured["words"][0]["word"].isalnum() and measured["words"][0]["occurrences"] > 2
    assert len(measured["words"][0]["to_mean"]) == len(measured["stages"])
    board = Path("run/tensorboard/inspect")
    assert (board / "projector_config.pbtxt").exists()
    labels = {path.parent.name: path.read_text() for path in board.rglob("metadata.tsv")}
    assert "⏎" in labels["input"].splitlines() and "[e]" in labels["contextual"]


def test_the_largest_attention_weight_is_black() -> None:
    weights = np.array([[0.1, 0.2], [0.05, 0.1]])
    drawn = alignment.draw(alignment.Alignment(["a", "b"], ["c", "</s>"], {"layer 0": weights}))
    assert drawn.axes[0].images[0].get_clim() == (0, 0.2)


def test_help_says_which_runs_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("inspect", "--help") == 0
    assert "It takes runs of task=charlm." in capsys.readouterr().out
