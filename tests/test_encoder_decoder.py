"""A decoder behind its source obeys the laws of the state, and the whole task runs by command."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import seqzoo
from seqzoo import laws, ops, tasks
from seqzoo.cli.main import main
from seqzoo.config import defaults
from seqzoo.decoding.sampling import generate
from seqzoo.errors import UserError
from seqzoo.models import cost as info
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import FAMILIES, model_keys
from seqzoo.runs.checkpoint import load_mean, save
from seqzoo.state import leaves, select
from seqzoo.tasks.task import IGNORE, Batch
from seqzoo.tasks.translation import by_length, moses, score, translate
from seqzoo.training.loop import _own_words, train

JOINTS = (*laws.joints("gru"), {"bidirectional": False})
SOURCES = torch.randint(4, 20, (4, 7), generator=torch.Generator().manual_seed(1))
LENGTHS = [7, 3, 7, 5]
TARGETS = torch.randint(4, 20, (4, 6), generator=torch.Generator().manual_seed(2))
EXACT = {"atol": 1e-9, "rtol": 1e-9}


def small(name: str, **keys: object) -> LanguageModel:
    torch.manual_seed(0)
    keys = {"dim": 16, "n_layers": 2, "head": "encoder_decoder", **keys}
    if "n_heads" in defaults("model", name):
        keys["n_heads"] = 2
    model = seqzoo.build(name, vocab_size=20, **keys).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


every_model = pytest.mark.parametrize("name", FAMILIES)
every_joint = pytest.mark.parametrize("keys", JOINTS, ids=str)


def lengths_for(model: LanguageModel) -> list[int]:
    return [7] * 4 if model.wants_one_length else LENGTHS


# ---- the laws, behind a source


@every_model
@every_joint
@torch.no_grad()
def test_rows_do_not_see_each_other(name: str, keys: dict) -> None:
    """The padding law: neither the lengths nor the order of a batch change a row."""
    model = small(name, **keys)
    lengths = lengths_for(model)
    y, state = model(TARGETS, None, SOURCES, lengths)
    for row, n in enumerate(lengths):
        one = slice(row, row + 1)
        alone, _ = model(TARGETS[one], None, SOURCES[one, :n])
        torch.testing.assert_close(y[one], alone, **EXACT)
    assert all(leaf.shape[0] == 4 for leaf in leaves(state))
    rows = torch.tensor([2, 0, 2])
    other, _ = model(TARGETS[rows], select(state, rows))
    whole, _ = model(TARGETS, state)
    torch.testing.assert_close(whole[rows], other, **EXACT)


@every_model
@torch.no_grad()
def test_all_of_the_source_is_seen_and_none_of_the_future(name: str) -> None:
    for keys in JOINTS:
        model = small(name, **keys)
        y, _ = model(TARGETS, None, SOURCES)
        for position in (0, 6):
            other = SOURCES.clone()
            other[:, position] = 4 + (other[:, position] - 3) % 16
            assert (model(TARGETS, None, other)[0] != y).any(-1).all(), (keys, position)
        other = TARGETS.clone()
        other[:, 4:] = 5
        torch.testing.assert_close(model(other, None, SOURCES)[0][:, :4], y[:, :4], **EXACT)


def test_an_encoder_reads_both_ways_unless_told() -> None:
    def first(keys: dict) -> torch.Tensor:
        """What the encoder makes of the first token, with another last one."""
        other = SOURCES.clone()
        other[:, -1] = 4 + (other[:, -1] - 3) % 16
        encoder = small("gru", **keys).encoder
        return (encoder(SOURCES)[0][:, 0] - encoder(other)[0][:, 0]).abs().amax()

    assert first({}) > 0 and first({"bidirectional": False}) == 0
    assert small("transformer").encoder(SOURCES)[0].shape[-1] == 16  # one stack sees both sides
    assert small("gru").encoder(SOURCES)[0].shape[-1] == 32


def test_bahdanau_and_luong_by_their_equations() -> None:
    """One step of a fed GRU, written out."""
    h = torch.randn(1, 5, 32, dtype=torch.float64)
    valid = torch.tensor([[True] * 4 + [False]])
    x = torch.randn(1, 2, 16, dtype=torch.float64)
    for attention in ("bahdanau", "luong"):
        fed = small("gru", attention=attention, n_layers=1, block="classic").layers[0]
        cell = fed.layers[0]
        s = torch.zeros(1, 16, dtype=torch.float64)
        y, state, expected = torch.zeros_like(s), None, []
        for t in range(2):
            if attention == "bahdanau":
                e = fed.score(torch.tanh(fed.query(s)[:, None] + fed.key(h)))[..., 0]
                c = (e[:, :4].softmax(-1)[..., None] * h[:, :4]).sum(1)
                out, state = cell(fed.enter(torch.cat((x[:, t], c), -1))[:, None], state)
                s = out[:, 0]
                y = torch.tanh(fed.leave(torch.cat((s, c, x[:, t]), -1)))
            else:
                out, state = cell(fed.enter(torch.cat((x[:, t], y), -1))[:, None], state)
                s = out[:, 0]
                e = (fed.key(h) @ s[..., None])[..., 0]
                c = (e[:, :4].softmax(-1)[..., None] * h[:, :4]).sum(1)
                y = torch.tanh(fed.leave(torch.cat((c, s), -1)))
            expected.append(y)
        with ops.watching("source") as calls:
            said, _ = fed(x, fed.remember(h, valid))
        torch.testing.assert_close(said, torch.stack(expected, 1))
        (weights,) = (call() for call in calls)
        assert weights.shape == (1, 2, 5) and (weights[..., 4] == 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2))


def test_cross_attention_is_torchs() -> None:
    cross = small("transformer").layers[0].cross
    x, h = torch.randn(2, 3, 16).double(), torch.randn(2, 5, 16).double()
    valid = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    theirs = torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True).double()
    both = torch.cat((cross.query.weight, cross.key_value.weight))
    theirs.load_state_dict({"in_proj_weight": both, "out_proj.weight": cross.out.weight})
    expected, weights = theirs(x, h, h, key_padding_mask=~valid, average_attn_weights=False)
    with ops.watching("source") as calls:
        y, _ = cross(x, cross.remember(h, valid))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(calls[0](), weights[0])
    with ops.backend("naive"):
        torch.testing.assert_close(cross(x, cross.remember(h, valid))[0], expected)


def test_what_cannot_be_joined_is_refused() -> None:
    model = small("transformer", bridge="state")
    with pytest.raises(ValueError, match="rows of one length"):
        model.encode(SOURCES, LENGTHS)
    for said, keys in {
        "model.bidirectional=false": {"bridge": "state", "bidirectional": True},
        "model.encoder_layers=null": {"bridge": "state", "encoder_layers": 1},
        "model.source_heads=4": {"source_heads": 7},
        "model.share_embeddings=false": {"source_vocab_size": 30},
        "dot, bahdanau, luong": {"attention": "cosine"},
        "model.bridge=state has none": {"bridge": "state", "attention": "luong"},
    }.items():
        with pytest.raises(UserError, match=said):
            small("gru", **keys)
    with pytest.raises(ValueError, match="begins with a source"):
        small("gru")(TARGETS)


# ---- the task


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
    keys = {"source_vocab_size": None if joint else 31, "share_embeddings": joint}
    model = small("transformer", bridge=bridge, **keys)
    task.setup(model)
    seen = []
    for step in range(task.steps_per_epoch):
        batch = task.batch(step)
        source, lengths = batch.source
        assert batch.inputs.numel() + source.numel() <= 128
        assert not (model.wants_one_length and len(set(lengths)) > 1)
        for x, n, y, wanted in zip(source, lengths, batch.inputs, batch.targets, strict=True):
            said = wanted[wanted != IGNORE].numpy()
            assert x[n - 1] == task.source_tokenizer.id("</s>") and said[-1] == task.end
            assert y[0] == task.start and (y[1 : len(said)].numpy() == said[:-1]).all()
            text = task.source_tokenizer.decode(x[:n].numpy())
            assert task.tokenizer.decode(said) == text[::-1] and (x[n:] == task.pad).all()
            seen.append(text)
    assert sorted(seen) == sorted(task.source_tokenizer.decode(s) for s in task.train[0])


def test_an_encoder_translates_rows_as_alone() -> None:
    task = translation()
    both = task.tokenizer, task.source_tokenizer
    for keys in ({}, {"bridge": "state"}, {"position": "learned", "max_len": 64}):
        torch.manual_seed(0)
        model = seqzoo.build(
            "transformer", vocab_size=30, dim=16, head="encoder_decoder", dropout=0.3, **keys
        )
        for parameter in model.parameters():  # so that it has something to say
            parameter.data += 0.3 * torch.randn_like(parameter)
        sources = [*task.train[0][:9], task.train[0][0][:0]]
        for beams in (1, 3):
            together = translate(model, *both, sources, beams=beams)
            assert together == [translate(model, *both, [s], beams=beams)[0] for s in sources]
            assert together[-1] == ""
        assert len(set(together)) > 3
        long = np.concatenate([task.train[0][0]] * 30)
        if model.max_len is not None:  # what is read of it is its beginning
            read = translate(model, *both, [long, long[: model.max_len - 1]])
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
            (task.tokenizer.decode(s), task.tokenizer.decode(t), t[-1] == task.end)
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
    said, wanted = ["Ein Mann (alt) geht.", "zwei hunde"], ["ein Mann (alt) geht .", "zwei Hunde"]
    found = score(said, wanted, "de")
    assert found["exact"] == 0 and found["bleu"] < 100
    assert found["bleu_tokenised"] == pytest.approx(100)  # of lower-cased tokens
    assert "case:lc" in found["bleu_tokenised_signature"]
    assert moses(['it\'s "so", a-b.'], "en") == ['it \'s " so " , a-b .']
    sources = ["w w w w", "w w w w w", "w " * 40]
    parts = by_length(["a b c d"] * 3, ["a b c d"] * 2 + ["x"], sources)
    assert parts == pytest.approx({"bleu_by_words/01-05": 100, "bleu_by_words/31-": 0}, abs=1)
    parts = by_length(["ab", "ab", "b"], ["ab", "ba", "b"], ["w" * 10, "w" * 9, "w" * 41])
    assert parts == {"exact_by_letters/01-10": 50, "exact_by_letters/41-": 100}
    assert by_length(["drei"], ["drei"], ["the three"]) == {"exact_by_words/01-05": 100}


# ---- training


@pytest.mark.parametrize("attention", ("dot", "bahdanau"))
def test_seeing_changes_nothing(attention: str) -> None:
    """Samples and figures drop nothing out, and leave the random numbers where they were."""
    task = translation()
    keys = {"dim": 16, "dropout": 0.5, "attention": attention}
    model = seqzoo.build("gru", vocab_size=31, head="encoder_decoder", **keys).train()
    before = torch.get_rng_state()
    drawn = task.figures(model)
    assert task.sample(model) == task.sample(model) and model.training
    assert len(drawn) == 3 and torch.equal(before, torch.get_rng_state())


def test_scheduled_sampling_puts_in_what_the_model_says() -> None:
    model = small("gru")
    wanted = TARGETS.clone()
    wanted[1, 3:] = IGNORE
    batch = Batch(TARGETS, wanted, True, 0, (SOURCES, LENGTHS))
    said = model(TARGETS, None, SOURCES, LENGTHS)[0].argmax(-1)
    assert torch.equal(_own_words(model, batch, None, 0.0).inputs, TARGETS)
    mixed = _own_words(model, batch, None, 1.0).inputs
    assert torch.equal(mixed[:, 0], TARGETS[:, 0])
    assert torch.equal(mixed[0, 1:], said[0, :-1]) and torch.equal(mixed[1, 1:4], said[1, :3])
    assert torch.equal(mixed[1, 4:], TARGETS[1, 4:])


def test_the_mean_of_checkpoints(tmp_path: Path) -> None:
    models = [small("lstm", tie_embeddings=True) for _ in range(3)]
    for i, model in enumerate(models):
        for parameter in model.parameters():
            parameter.data += i
        optimizer = torch.optim.AdamW(model.parameters())
        save(tmp_path / str(i), model=model, optimizer=optimizer, state=None, progress={})
    expected = {name: value.clone() for name, value in models[1].state_dict().items()}
    load_mean([tmp_path / str(i) for i in range(3)], models[0])
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_resume_is_exact_behind_a_source(tmp_path: Path) -> None:
    """Samples, figures, evaluations and own words included: the same bits."""

    def fit(folder: Path, *, until: int | None = None, resume: bool = False) -> dict:
        task = translation(longest=4)
        batch = task.batch

        def interrupted(step: int) -> Batch:
            if step == until:
                signal.raise_signal(signal.SIGINT)
            return batch(step)

        task.batch = interrupted
        keys = {"dim": 16, "n_layers": 1, "dropout": 0.3, "head": "encoder_decoder"}
        model_config = model_keys("gru", **keys)
        settings = {
            **defaults("trainer", "default"),
            "max_seconds": None,
            "max_steps": 14,
            "eval_every": 3,
            "sample_every": 3,
            "checkpoint_every": 7,
            "average_checkpoints": 2,
            "scheduled_sampling": 0.5,
            "label_smoothing": 0.1,
            "dtype": "float32",
        }
        torch.manual_seed(1)
        model = seqzoo.build(vocab_size=task.tokenizer.vocab_size, **model_config)
        folder.mkdir(exist_ok=True)
        config = {"model": model_config, "task": {"name": "translation"}, "trainer": settings}
        return train(model, task, settings, folder, config=config, resume=resume, quiet=True)

    alone, parts = tmp_path / "alone", tmp_path / "parts"
    whole = fit(alone)
    assert fit(parts, until=7)["status"] == "interrupted"
    summary = fit(parts, resume=True)
    mine, other = (
        load_file(folder / "checkpoints" / "last" / "model.safetensors")
        for folder in (alone, parts)
    )
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert whole["average"] == summary["average"] and whole["exported"] == summary["exported"]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize(
    "name, keys",
    [
        ("transformer", ["task.joint_vocabulary=false", "model.share_embeddings=false"]),
        ("lstm", ["model.attention=bahdanau"]),
        ("rwkv7", []),
        ("gru", ["model.bridge=state", "trainer.scheduled_sampling=0.5"]),
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
        "head=encoder_decoder",
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
        "trainer.warmup_steps=10",
        "trainer.lr=0.01",
        "trainer.label_smoothing=0.1",
        "trainer.average_checkpoints=3",
        "trainer.device=cpu",
        *keys,
    ]
    assert run(*training, "trainer.max_steps=60", f"hydra.run.dir={folder}") == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [line["train/loss"] for line in lines if "train/loss" in line]
    assert curve[-1] < curve[0] - 0.1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exported"] in ("best", "average") and "val/loss" in summary["average"]
    assert len(list((folder / "checkpoints").glob("step-*"))) >= 3
    again = (f"resume={folder}", "head=encoder_decoder", "trainer.max_steps=65")
    assert run("train", *again) == 0
    capsys.readouterr()
    assert run("eval", folder, "--split", "test", "--beam", 1) == 0
    assert "test/token_accuracy" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert run("compare", folder, "--out", tmp_path / "side") == 0
    _, _, row = capsys.readouterr().out.split("by letters")[1].splitlines()[:3]
    assert float(row.split("|")[2]) == pytest.approx(summary["test/exact"], rel=0.01)
    assert (tmp_path / "side" / "lengths.svg").exists()
    assert run("translate", folder, "abc", "", "de") == 0
    one_by_one = capsys.readouterr().out.splitlines()
    assert len(one_by_one) == 3 and one_by_one[1] == ""
    assert run("translate", folder, "abc€", "€β") == 0
    assert "not in its vocabulary: '€' 'β'" in capsys.readouterr().err
    assert run("translate", folder, "abc", "--n-best", 2) == 0
    best = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in best] == ["1", "1"] and best[0][2] == one_by_one[0]
    assert float(best[0][1]) >= float(best[1][1])
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n" * 514))
    assert run("translate", folder, "--n-best", 1) == 0
    numbered = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert numbered == [str(i) for i in range(1, 515)]
    assert run("export", folder, "--format", "hf", "--out", tmp_path / "hf") == 2
    assert "encoders" in capsys.readouterr().err
    assert run("train", f"resume={folder}", "head=decoder_only", "trainer.max_steps=70") == 2
    assert "keeps its model" in capsys.readouterr().err
    assert run("info", folder) == 0
    figure = tmp_path / "looked.png"
    looked = run("translate", folder, "abc", "--attention", figure)
    if name == "gru":
        assert looked == 2 and "looks back" in capsys.readouterr().err
        command = [sys.executable, "-m", "seqzoo", "translate", str(folder)]
        piped = subprocess.run(command, input="abc\n\nde\n", capture_output=True, text=True)
        assert piped.stdout.splitlines() == one_by_one
    else:
        assert looked == 0 and figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["head=encoder_decoder", "task=charlm"], "no source to encode"),
        (["task=translation", "task.joint_vocabulary=false"], "use head=encoder_decoder"),
        (
            ["head=encoder_decoder", "task=translation", "task.joint_vocabulary=false"],
            "model.share_embeddings=false",
        ),
        (["head=encoder", "task=translation"], "decoder_only, encoder_decoder"),
        (["model.head=encoder_decoder", "task=translation"], "give head=encoder_decoder"),
        (["task=translation", "task.lowercase=true"], "leave it out"),
        (["model.bridge=state", "task=translation"], "a key of head=encoder_decoder"),
    ],
)
def test_wrong_requests(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *arguments) == 2
    assert said in capsys.readouterr().err


def test_what_a_translator_computes() -> None:
    """A step of the encoder is one of the decoder without the head's matrix."""
    model = small("gru", bridge="state").float()
    decoding, head = info.step_at(model, 1)[1], 2 * 16 * 20
    assert info.flops_of_training(model, 10) == 3 * (decoding - head / 2)


def test_generate_goes_on_behind_a_state() -> None:
    model = small("gru")
    prompt, state = model.begin(SOURCES, 2)
    steps = torch.stack(list(generate(model, prompt, state, max_tokens=5, temperature=0)), 1)
    text = prompt
    for t in range(5):
        token = model(text, None, SOURCES)[0][:, -1].argmax(-1)
        assert torch.equal(token, steps[:, t])
        text = torch.cat((text, token[:, None]), 1)
