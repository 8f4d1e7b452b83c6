"""Translation: batches, objective and scores of the task, and the whole by command."""

import io
import json
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import seqzoo
from calls import status
from seqzoo import tasks
from seqzoo.config.files import defaults
from seqzoo.data.bpe_dropout import WAYS, BpeDropout
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.tasks.next_token import (
    IGNORE,
    TokenBatch,
    divergence,
    next_token_loss,
    replace_by_predictions,
)
from seqzoo.tasks.scores import by_length, moses, score, signatures
from seqzoo.tasks.translate import Translator
from seqzoo.training.hooks import Hook
from seqzoo.training.training import Training


def small(name: str, **keys: object) -> LanguageModel:
    torch.manual_seed(0)
    return seqzoo.build(
        name, vocab_size=31, architecture="encoder_decoder", dim=16, n_layers=2, **keys
    ).eval()


def translation(**keys: object):
    keys = {
        **defaults("task", "translation"),
        "corpus": "reverse",
        "longest": 9,
        "n_pairs": 200,
        "val_pairs": 20,
        "test_pairs": 10,
        "batch_tokens": 128,
        **keys,
    }
    return tasks.make(keys, tasks.prepare(keys), seed=1)


@pytest.mark.parametrize("bridge", ("attention", "state"))
@pytest.mark.parametrize("joint", (True, False))
def test_batches_for_an_encoder(bridge: str, joint: bool) -> None:
    task = translation(joint_vocabulary=joint)
    keys = {} if joint else {"source_vocab_size": 31, "share_embeddings": False}
    model = small("transformer", bridge=bridge, **keys)
    task.setup(model)
    seen = []
    for step in range(task.plan.n_batches):
        batch = task.batch(step)
        source, lengths = batch.source
        assert batch.inputs.numel() + source.numel() <= 128
        assert not (model.needs_equal_lengths and len(set(lengths)) > 1)
        for x, n, y, following in zip(source, lengths, batch.inputs, batch.targets, strict=True):
            target = following[following != IGNORE].numpy()
            assert x[n - 1] == task.source_tokenizer.id("</s>")
            assert target[-1] == task.tokenizer.id("</s>")
            assert y[0] == task.start and (y[1 : len(target)].numpy() == target[:-1]).all()
            text = task.source_tokenizer.decode(x[:n].numpy())
            assert task.tokenizer.decode(target) == text[::-1] and (x[n:] == task.pad).all()
            seen.append(text)
    assert sorted(seen) == sorted(task.source_tokenizer.decode(s) for s in task.train[0])


def test_a_row_is_translated_as_alone() -> None:
    task = translation()
    for keys in ({}, {"bridge": "state"}, {"position": "learned", "max_len": 64}):
        torch.manual_seed(0)
        model = seqzoo.build(
            "transformer",
            vocab_size=30,
            dim=16,
            architecture="encoder_decoder",
            dropout=0.3,
            **keys,
        )
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        translate = Translator(model, task.tokenizer, task.source_tokenizer).translate
        sources = [*task.train[0][:9], task.train[0][0][:0]]
        for beams in (1, 3):
            together = translate(sources, beams=beams)
            assert together == [translate([s], beams=beams)[0] for s in sources]
            assert together[-1] == ""
        assert len(set(together)) > 3
        long = np.concatenate([task.train[0][0]] * 30)
        if model.max_len is not None:  # a longer source is cut
            read = translate([long, long[: model.max_len - 1]])
            assert read[0] == read[1] != ""


def test_long_pairs_are_cut_or_dropped_and_counted(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    rows = [("a" * s, "b" * t) for s in (1, 4, 9, 12) for t in (1, 3, 8)]
    table.write_text("".join(f"{s}\t{t}\n" for s, t in rows))
    files = {"corpus": None, "path": str(table), "val_path": str(table), "test_path": str(table)}
    fits = [(s, t) for s, t in rows if len(s) + len(t) + 1 <= 12]
    for how in ("drop", "cut"):
        task = translation(**files, max_len=12, long_pairs=how)
        assert f"{len(rows) - len(fits)} pairs longer than task.max_len=12 tokens" in task.note
        seen = [
            (task.tokenizer.decode(s), task.tokenizer.decode(t), t[-1] == task.tokenizer.id("</s>"))
            for s, t in zip(*task.train, strict=True)
        ]
        whole = [(s, t) for s, t, ended in seen if ended and len(s) + len(t) + 1 <= 12]
        assert set(fits) <= set(whole)
        if how == "drop":
            assert len(seen) == len(fits)
        else:
            assert ("a" * 6, "b" * 6, False) in seen and len(seen) == len(rows)


def test_reversals_hold_out() -> None:
    data = translation(longest=3, n_pairs=3000, val_pairs=100, test_pairs=100).data
    parts = [[tuple(ids) for ids in part.source] for part in (data.train, data.val, data.test)]
    train, val, test = map(set, parts)
    assert not train & val and not train & test and not val & test
    assert len(val) == len(parts[1]) == 100
    shares = np.bincount([len(text) for text in parts[0]], minlength=4)[1:] / len(parts[0])
    assert (abs(shares - 1 / 3) < 0.05).all()


def test_lowercase(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("".join(f"The {i} Dogs\tDie {i} HUNDE\n" for i in range(30)))
    task = translation(corpus=None, path=str(table), lowercase=True)
    assert task.data.references["val"][0].islower()
    assert task.source_tokenizer.decode(task.train[0][0]).islower()


def test_scores() -> None:
    outputs, references = (
        ["Ein Mann (alt) geht.", "zwei hunde"],
        ["ein Mann (alt) geht .", "zwei Hunde"],
    )
    found = score(outputs, references, "de")
    assert found["exact"] == 0 and found["bleu"] < 100
    assert found["bleu_tokenised"] == pytest.approx(100)  # of lower-cased tokens
    assert "case:lc" in signatures()["bleu_tokenised_signature"]
    assert moses(['it\'s "so", a-b.'], "en") == ['it \'s " so " , a-b .']
    sources = ["w w w w", "w w w w w", "w " * 40]
    parts = by_length(["a b c d"] * 3, ["a b c d"] * 2 + ["x"], sources)
    assert parts == pytest.approx({"bleu_by_words/01-05": 100, "bleu_by_words/31-": 0}, abs=1)
    parts = by_length(["ab", "ab", "b"], ["ab", "ba", "b"], ["w" * 10, "w" * 9, "w" * 41])
    assert parts == {"exact_by_letters/01-10": 50, "exact_by_letters/41-": 100}
    assert by_length(["drei"], ["drei"], ["the three"]) == {"exact_by_words/01-05": 100}


def test_scheduled_sampling_replaces_inputs_by_predictions() -> None:
    model = small("gru")
    source = torch.randint(4, 20, (4, 7), generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(4, 20, (4, 6), generator=torch.Generator().manual_seed(2))
    targets = tokens.clone()
    targets[1, 3:] = IGNORE
    batch = TokenBatch(tokens, targets, True, 0, 0, (source, [7, 3, 7, 5]))
    predicted = model(tokens, None, *batch.source)[0].argmax(-1)
    assert torch.equal(replace_by_predictions(model, batch, None, 0.0).inputs, tokens)
    mixed = replace_by_predictions(model, batch, None, 1.0).inputs
    assert torch.equal(mixed[:, 0], tokens[:, 0])
    assert torch.equal(mixed[0, 1:], predicted[0, :-1])
    assert torch.equal(mixed[1, 1:4], predicted[1, :3])
    assert torch.equal(mixed[1, 4:], tokens[1, 4:])


def test_r_drop_adds_the_divergence_of_two_passes() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 3, 5, 9, generator=generator)
    targets = torch.randint(9, (3, 5), generator=generator)
    targets[0, 2:] = IGNORE
    kept = targets != IGNORE
    p, q = first[kept].log_softmax(-1), second[kept].log_softmax(-1)
    kl = partial(torch.nn.functional.kl_div, reduction="sum", log_target=True)
    assert torch.allclose(divergence(first, second, targets), (kl(p, q) + kl(q, p)) / 2)

    task, passes = translation(r_drop=5.0), iter((first, second))
    batch = TokenBatch(targets, targets, True, 0, 0)
    loss, _ = task.objective(lambda *_: (next(passes), None), batch, None, progress=0.0)
    each = (next_token_loss(logits, targets) for logits in (first, second))
    expected = sum(each) / 2 + 2.5 * divergence(first, second, targets)
    assert torch.allclose(loss, expected)


BPE = {"corpus": "numbers", "limit": 10_000, "n_pairs": 2000, "tokenizer": "bpe", "vocab_size": 400}


def test_bpe_dropout_cuts_words_by_the_merges_that_are_left() -> None:
    data = translation(**BPE).data
    tokenizer, sentences = data.tokenizer, data.train.target
    draw = np.random.default_rng(0)

    def readings(probability: float, seed: int = 1) -> list[np.ndarray]:
        cut = BpeDropout(tokenizer, sentences, probability, seed)
        return [cut.read(row, draw) for row in range(len(sentences))]

    assert all(map(np.array_equal, readings(0.0), sentences))
    sizes = [sum(map(len, sentences))]
    for probability in (0.1, 0.5, 0.95):
        ids = readings(probability)
        sizes.append(sum(map(len, ids)))
        assert [tokenizer.decode(i) for i in ids] == [tokenizer.decode(i) for i in sentences]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]


def test_bpe_dropout_by_hand() -> None:
    """`abab` under the merges ab, abab: each of the ways of the paper's algorithm, as often as it
    should come. Both places of `ab` are left out, and nothing follows: p^2. Else one is joined; the
    other is then tried alone, and is left out with p; if it is joined too, `abab` may be."""
    tokenizer = Tokenizer.train("bpe", ["abab abab ab", "abab"] * 9, vocab_size=258)
    assert tokenizer.vocab_size == 258 and len(tokenizer.encode("abab")) == 1
    p, n = 0.3, 4000
    found: Counter[tuple[str, ...]] = Counter()
    for seed in range(n // WAYS + 1):
        cut = BpeDropout(tokenizer, [tokenizer.encode("abab")], p, seed)
        found.update(tuple(map(tokenizer.piece, cut._cut("abab", way))) for way in range(WAYS))
    shares = {way: count / found.total() for way, count in found.items()}
    first, second = 1 - p, p * (1 - p)  # the place of `ab` that is joined first
    expected = {
        ("a", "b", "a", "b"): p**2,
        ("ab", "a", "b"): first * p,
        ("a", "b", "ab"): second * p,
        ("ab", "ab"): (1 - p**2) * (1 - p) * p,
        ("abab",): (1 - p**2) * (1 - p) ** 2,
    }
    assert shares.keys() == expected.keys()
    assert all(abs(shares[way] - expected[way]) < 0.03 for way in expected)


def test_bpe_dropout_in_training_alone() -> None:
    plain, task = (translation(**BPE, bpe_dropout=share, max_len=40) for share in (0.0, 0.2))
    again = translation(**BPE, bpe_dropout=0.2, max_len=40)
    again.batch(5)  # what was read before changes nothing
    longer = 0
    for step in range(20):
        batch, other = task.batch(step), again.batch(step)
        assert torch.equal(batch.inputs, other.inputs) and torch.equal(batch.targets, other.targets)
        assert batch.inputs.shape[1] <= 40
        longer += batch.n_targets - plain.batch(step).n_targets
        texts, before = (
            [task.tokenizer.decode(row) for row in b.inputs] for b in (batch, plain.batch(step))
        )
        assert texts == before
        ends = (batch.targets == task.tokenizer.id("</s>")).sum(1)
        assert (ends == 1).all()
    assert longer > 20
    model = seqzoo.build("gru", vocab_size=task.tokenizer.vocab_size, dim=16, n_layers=1).eval()
    assert task.evaluate(model, "val", quick=True) == plain.evaluate(model, "val", quick=True)


@pytest.mark.parametrize(
    ("keys", "change"),
    [
        ("task.bpe_dropout=0.1", "give task.tokenizer=bpe"),
        (
            "task.bpe_dropout=0.1 task.tokenizer=bpe task.long_pairs=cut",
            "give task.long_pairs=drop",
        ),
        (
            "model=transformer architecture=encoder_decoder architecture.bridge=state "
            "task.bpe_dropout=0.1 task.tokenizer=bpe",
            "architecture.bridge=attention",
        ),
    ],
)
def test_bpe_dropout_is_refused(tmp_path: Path, keys: str, change: str) -> None:
    with pytest.raises(UserError, match=re.escape(change)):
        seqzoo.train(
            "task=translation",
            "task.corpus=reverse",
            "task.n_pairs=200",
            *keys.split(),
            f"hydra.run.dir={tmp_path}",
            quiet=True,
        )


@pytest.mark.parametrize("attention", ("dot", "bahdanau"))
def test_samples_and_figures_change_nothing(attention: str) -> None:
    """They run without dropout and leave the random generator where it was."""
    task = translation()
    model = small("gru", dropout=0.5, attention=attention).train()
    before = torch.get_rng_state()
    figures = task.figures(model)
    assert task.sample(model) == task.sample(model) and model.training
    assert len(figures) == 3 and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "name, keys",
    [
        ("transformer", ["task.joint_vocabulary=false", "architecture.share_embeddings=false"]),
        ("lstm", ["architecture.attention=bahdanau"]),
        ("rwkv7", []),
        ("gru", ["architecture.bridge=state", "task.scheduled_sampling=0.5"]),
    ],
)
def test_by_command(
    name: str,
    keys: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    training = [
        "train",
        f"model={name}",
        "architecture=encoder_decoder",
        "task=translation",
        "task.corpus=reverse",
        "task.longest=5",
        "task.val_pairs=20",
        "task.test_pairs=20",
        "task.batch_tokens=512",
        "task.beam=2",
        "model.dim=32",
        "model.n_layers=1",
        "trainer.max_seconds=null",
        "trainer.checkpoint_every=10",
        "schedule.warmup_steps=10",
        "optim.lr=0.01",
        "task.label_smoothing=0.1",
        "trainer.average_checkpoints=3",
        "trainer.device=cpu",
        *keys,
    ]
    assert status(*training, "trainer.max_steps=60", f"hydra.run.dir={folder}") == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [line["train/loss"] for line in lines if "train/loss" in line]
    assert curve[-1] < curve[0] - 0.1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exported"] in ("best", "average") and "val/loss" in summary["average"]
    assert len(list((folder / "checkpoints").glob("step-*"))) >= 3
    again = (f"resume={folder}", "architecture=encoder_decoder", "trainer.max_steps=65")
    assert status("train", *again) == 0
    capsys.readouterr()
    assert status("eval", folder, "--split", "test", "--beam", 1) == 0
    assert "test/token_accuracy" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert status("compare", folder, "--out", tmp_path / "side") == 0
    _, _, row = capsys.readouterr().out.split("by letters")[1].splitlines()[:3]
    assert float(row.split("|")[2]) == pytest.approx(summary["test/exact"], rel=0.01)
    assert (tmp_path / "side" / "lengths.svg").exists()
    assert status("translate", folder, "abc", "", "de") == 0
    one_by_one = capsys.readouterr().out.splitlines()
    assert len(one_by_one) == 3 and one_by_one[1] == ""
    assert status("translate", folder, "abc€", "€β") == 0
    assert "not in the vocabulary: '€' 'β'" in capsys.readouterr().err
    assert status("translate", folder, "abc", "--n-best", 2) == 0
    best = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in best] == ["1", "1"] and best[0][2] == one_by_one[0]
    assert float(best[0][1]) >= float(best[1][1])
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n" * 514))
    assert status("translate", folder, "--n-best", 1) == 0
    numbered = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert numbered == [str(i) for i in range(1, 515)]
    assert status("export", folder, "--format", "hf", "--out", tmp_path / "hf") == 2
    assert "an encoder_decoder" in capsys.readouterr().err
    other = ["architecture=decoder_only", "trainer.max_steps=70"]
    assert status("train", f"resume={folder}", *other) == 2
    assert "keeps its model" in capsys.readouterr().err
    assert status("info", folder) == 0
    figure = tmp_path / "looked.png"
    looked = status("translate", folder, "abc", "--attention", figure)
    if name == "gru":
        assert looked == 2 and "no attention to its source" in capsys.readouterr().err
        command = [sys.executable, "-m", "seqzoo", "translate", str(folder)]
        piped = subprocess.run(command, input="abc\n\nde\n", capture_output=True, text=True)
        assert piped.stdout.splitlines() == one_by_one
    else:
        assert looked == 0 and figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["architecture=encoder_decoder", "task=charlm"], "give architecture=decoder_only"),
        (["task=translation", "task.joint_vocabulary=false"], "give architecture=encoder_decoder"),
        (
            ["architecture=encoder_decoder", "task=translation", "task.joint_vocabulary=false"],
            "architecture.share_embeddings=false",
        ),
        (["architecture=encoder", "task=translation"], "decoder_only, encoder_decoder"),
        (["head=encoder_decoder", "task=translation"], "architecture"),
        (["task=translation", "task.lowercase=true"], "leave it out"),
        (["architecture.bridge=state", "task=translation"], "architecture.bridge: no such key"),
    ],
)
def test_wrong_requests(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("train", *arguments) == 2
    assert message in capsys.readouterr().err


def test_resume_is_exact_behind_a_source(tmp_path: Path) -> None:
    """Stopped after step 7 and resumed, samples, figures, evaluations and replaced inputs included:
    the weights of the run that was left alone, and the same choice of what to export."""

    class StopAt(Hook):
        every = 7

        def on_step(self, training: Training) -> None:
            training.interrupted = training.step == 7

    given = (
        "model=gru task=translation architecture=encoder_decoder task.corpus=reverse "
        "task.longest=4 task.n_pairs=200 task.val_pairs=20 task.test_pairs=10 "
        "task.batch_tokens=128 task.scheduled_sampling=0.5 task.label_smoothing=0.1 task.r_drop=5 "
        "task.tokenizer=bpe task.vocab_size=300 task.bpe_dropout=0.3 "
        "model.dim=16 model.n_layers=1 model.dropout=0.3 trainer.max_seconds=null "
        "trainer.max_steps=14 trainer.eval_every=3 trainer.sample_every=3 "
        "trainer.checkpoint_every=7 trainer.average_checkpoints=2 trainer.dtype=float32"
    ).split()
    alone, parts = tmp_path / "alone", tmp_path / "parts"
    whole = seqzoo.train(*given, f"hydra.run.dir={alone}", quiet=True)
    half = seqzoo.train(*given, f"hydra.run.dir={parts}", hooks=[StopAt()], quiet=True)
    assert half.summary["status"] == "interrupted" and half.summary["steps"] == 7
    resumed = seqzoo.train(f"resume={parts}", quiet=True)
    mine, other = (
        load_file(folder / "checkpoints" / "last" / "model.safetensors")
        for folder in (alone, parts)
    )
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    for key in ("average", "exported"):
        assert whole.summary[key] == resumed.summary[key]
