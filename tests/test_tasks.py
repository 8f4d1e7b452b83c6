"""Every model on every task, through the command line, on real text: it learns, is measured, goes
on, and writes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import seqzoo
from calls import status
from seqzoo import tasks
from seqzoo.config.files import defaults
from seqzoo.decoding.sampling import generate, sample
from seqzoo.models.zoo import FAMILIES
from seqzoo.tasks.charlm import block_loss, stream_loss
from seqzoo.tasks.translate import Translator

SMALL = [
    "model.dim=32",
    "model.n_layers=1",
    "trainer.dtype=float32",
    "trainer.max_seconds=null",
    "optim.lr=0.01",
    "schedule.warmup_steps=5",
    "trainer.log_every=5",
]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("name", FAMILIES)
def test_charlm(
    name: str, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    training = [
        "train",
        f"model={name}",
        "task=charlm",
        f"task.path={text_file}",
        "task.seq_len=32",
        "task.batch_size=8",
        "task.sample_tokens=20",
        *SMALL,
    ]
    assert status(*training, "trainer.max_steps=60", f"hydra.run.dir={folder}") == 0
    said = capsys.readouterr().out
    assert "seqzoo generate" in said and "parameters" in said
    curve = losses(folder)
    assert curve[-1] < curve[0] - 0.5
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["val/stream_loss"] < 3.2 and summary["val/loss"] < 3.2

    assert status("eval", folder) == 0
    measured = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert float(measured["val/loss"]) == pytest.approx(summary["val/loss"], abs=1e-3)
    assert float(measured["val/stream_loss"]) == pytest.approx(summary["val/stream_loss"], abs=1e-3)

    assert status("train", f"resume={folder}", "trainer.max_steps=70") == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 70
    capsys.readouterr()

    written = []
    for seed in (1, 1, 2):
        assert (
            status(
                "generate",
                folder,
                "--prompt",
                "def ",
                "--tokens",
                60,
                "--seed",
                seed,
                "--temperature",
                1.5,
                "--top-p",
                0.95,
            )
            == 0
        )
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != written[2]
    assert written[0].startswith("def ") and len(written[0]) == 4 + 60 + 1


@pytest.mark.parametrize("name", FAMILIES)
def test_translation(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    training = [
        "train",
        f"model={name}",
        "task=translation",
        "task.limit=1000",
        "task.val_pairs=8",
        "task.test_pairs=8",
        "task.batch_tokens=512",
        *SMALL,
    ]
    assert status(*training, "trainer.max_steps=50", f"hydra.run.dir={folder}") == 0
    curve = losses(folder)
    assert curve[-1] < curve[0] - 0.5
    summary = json.loads((folder / "summary.json").read_text())
    for metric in ("exact", "token_accuracy", "chrf"):
        assert 0 <= summary[f"val/{metric}"] <= 100 and 0 <= summary[f"test/{metric}"] <= 100
    assert "val/bleu" not in summary  # numbers are written in less than four words
    assert all("version:2" in summary[f"{name}_signature"] for name in ("bleu", "chrf"))
    assert status("train", f"resume={folder}", "trainer.max_steps=55") == 0
    capsys.readouterr()
    assert status("eval", folder, "--split", "test") == 0
    assert "test/exact\t" in capsys.readouterr().out
    assert status("translate", folder, "forty-two", "seven") == 0
    one_by_one = capsys.readouterr().out.splitlines()
    assert len(one_by_one) == 2 and all(line.strip() for line in one_by_one)
    command = [sys.executable, "-m", "seqzoo", "translate", str(folder)]
    if name == "gru":  # the same through a pipe, once
        piped = subprocess.run(
            command, input="forty-two\nseven\n", capture_output=True, text=True, check=True
        )
        assert piped.stdout.splitlines() == one_by_one


# ---- batches


def charlm(text_file: Path, **keys: object):
    keys = {
        **defaults("task", "charlm"),
        "path": str(text_file),
        "seq_len": 16,
        "batch_size": 4,
        **keys,
    }
    return tasks.make(keys, tasks.prepare(keys), seed=3)


def test_lanes_go_on_where_they_stopped(text_file: Path) -> None:
    task = charlm(text_file, reset=0.0)
    task.setup(seqzoo.build("gru", vocab_size=task.tokenizer.vocab_size, dim=8))
    assert task.carries
    N = len(task.train)
    steps = 2 * N // (4 * 16) + 3
    lanes = torch.cat([task.batch(step).inputs for step in range(steps)], 1)
    for lane, row in enumerate(lanes):
        start = lane * (N // 4)
        expected = task.train[(start + torch.arange(lanes.shape[1])) % N]
        assert torch.equal(row, expected)
    assert task.batch(0).fresh and not task.batch(5).fresh


def test_blocks_cover_an_epoch_once(text_file: Path) -> None:
    task = charlm(text_file)
    task.setup(seqzoo.build("transformer", vocab_size=task.tokenizer.vocab_size, dim=8))
    assert not task.carries
    per_epoch = len(task.train) // 16
    starts = torch.cat([task._blocks(step) for step in range(per_epoch // 4)])
    assert len(starts.unique()) == len(starts) and len({int(s) % 16 for s in starts}) == 1
    assert torch.equal(task.batch(7).inputs, charlm(text_file, carry=False).batch(7).inputs)
    assert not torch.equal(task.batch(0).inputs, task.batch(per_epoch // 4 + 1).inputs)
    batch = task.batch(2)
    assert batch.fresh and torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_the_state_is_forgotten_sometimes(text_file: Path) -> None:
    task = charlm(text_file, reset=0.25, carry=True)
    fresh = [task.batch(step).fresh for step in range(400)]
    assert 60 < sum(fresh) < 140
    assert fresh == [
        charlm(text_file, reset=0.25, carry=True).batch(step).fresh for step in range(400)
    ]


def test_translation_batches() -> None:
    keys = {
        **defaults("task", "translation"),
        "limit": 500,
        "batch_tokens": 512,
        "val_pairs": 10,
        "test_pairs": 10,
    }
    task = tasks.make(keys, tasks.prepare(keys), seed=1)
    seen = np.concatenate([rows for rows in task.plan.batches(0)])
    sources, targets = task.data.train
    assert sorted(seen) == list(range(len(sources)))
    for step in (0, task.plan.n_batches - 1, task.plan.n_batches):
        batch = task.batch(step)
        assert batch.inputs.numel() <= 512
        for x, y in zip(batch.inputs, batch.targets, strict=True):
            wanted = y[y != -100]
            text = task.tokenizer.decode(wanted.numpy())
            source = task.tokenizer.decode(x[: int((x == task.start).nonzero()[0, 0])].numpy())
            index = [task.tokenizer.decode(s) for s in sources].index(source)
            assert text == task.tokenizer.decode(targets[index]) and wanted[
                -1
            ] == task.tokenizer.id("</s>")


# ---- evaluation and decoding


@pytest.mark.parametrize("name", FAMILIES)
def test_the_two_losses(name: str, text_file: Path) -> None:
    """Against the plainest reading: blocks one at a time; the stream in one piece."""
    torch.manual_seed(0)
    model = seqzoo.build(name, vocab_size=20, dim=16, n_layers=1).eval()
    text = torch.randint(0, 20, (301,))

    @torch.no_grad()
    def plain(parts: list[torch.Tensor]) -> float:
        total = sum(
            float(F.cross_entropy(model(p[None, :-1])[0][0], p[1:], reduction="sum"))
            for p in parts
            if len(p) > 1
        )
        return total / 300

    blocks = [text[i : i + 33] for i in range(0, 300, 32)]
    assert block_loss(model, text, 32) == pytest.approx(plain(blocks), abs=1e-5)
    if not model.state_grows:
        assert stream_loss(model, text, 32) == pytest.approx(plain([text]), abs=1e-5)
    else:  # a cache that may hold everything reads as if it were bounded by nothing
        assert stream_loss(model, text, 4 * 301) == pytest.approx(plain([text]), abs=1e-5)
        assert math.isfinite(stream_loss(model, text, 32))


@pytest.mark.parametrize("position", ("learned", "sinusoidal"))
def test_positions_that_end_still_stream_and_write(position: str) -> None:
    torch.manual_seed(0)
    model = seqzoo.build(
        "transformer", vocab_size=20, dim=16, n_layers=1, position=position, max_len=16
    ).eval()
    text = torch.randint(0, 20, (101,))
    assert math.isfinite(stream_loss(model, text, 16))
    tokens = list(generate(model, text[None, :30], max_tokens=40, temperature=0))
    assert len(tokens) == 40


@pytest.mark.parametrize("name", FAMILIES)
def test_stepping_writes_what_rereading_would(name: str) -> None:
    torch.manual_seed(0)
    model = seqzoo.build(name, vocab_size=20, dim=16, n_layers=2).eval()
    text = torch.randint(0, 20, (3, 5))
    for token in generate(model, text, max_tokens=12, temperature=0):
        assert torch.equal(token, model(text)[0][:, -1].argmax(-1))
        text = torch.cat((text, token[:, None]), 1)


def test_rows_end_on_their_own() -> None:
    torch.manual_seed(1)
    model = seqzoo.build("transformer", vocab_size=6, dim=16, n_layers=1).eval()
    prompt = torch.randint(0, 6, (8, 3))
    random = torch.Generator().manual_seed(0)
    rows = torch.stack(list(generate(model, prompt, max_tokens=200, stop=2, generator=random)), 1)
    for row in rows:
        first = int((row == 2).nonzero()[0, 0])
        assert (row[first:] == 2).all()
    assert len({int((row == 2).nonzero()[0, 0]) for row in rows}) > 1


def test_unlike_lengths_translate_as_alone() -> None:
    keys = {**defaults("task", "translation"), "limit": 300, "val_pairs": 5, "test_pairs": 5}
    data = tasks.prepare(keys)
    torch.manual_seed(0)
    model = seqzoo.build("lstm", vocab_size=data.tokenizer.vocab_size, dim=16).eval()
    sources = data.train.source[:9]
    translator = Translator(model, data.tokenizer, data.source_tokenizer)
    together = translator.translate(sources)
    assert together == [translator.translate([source])[0] for source in sources]


def test_sampling() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    random = torch.Generator().manual_seed(0)

    def shares(**options: float) -> list[float]:
        drawn = sample(logits, generator=random, **options)
        return [float((drawn == i).float().mean()) for i in range(4)]

    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(temperature=0) == [1, 0, 0, 0]
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_p=0.75) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(top_p=0.4) == [1, 0, 0, 0]
    assert shares(temperature=0.5) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)
