"""The trainer: a run stopped and resumed is the run left alone; checkpoints are whole or refused;
logs are complete."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import seqzoo
from seqzoo import tasks
from seqzoo.config import defaults
from seqzoo.models.block import Dropout
from seqzoo.models.zoo import FAMILIES, model_keys
from seqzoo.runs import checkpoint
from seqzoo.training.loop import train
from seqzoo.training.optim import adamw, schedule

SMALL = {"dim": 16, "n_layers": 1, "n_heads": 2}


def fit(
    folder: Path,
    text: Path,
    name: str = "lstm",
    *,
    resume: bool = False,
    dropout: float = 0.1,
    task: dict[str, Any] = {},
    **trainer: Any,
):
    known = defaults("model", name)
    model = model_keys(name, **{k: v for k, v in SMALL.items() if k in known}, dropout=dropout)
    keys = {
        **defaults("task", "charlm"),
        "path": str(text),
        "seq_len": 16,
        "batch_size": 4,
        "sample_tokens": 8,
        **task,
    }
    settings = {
        **defaults("trainer", "default"),
        **{
            "max_seconds": None,
            "dtype": "float32",
            "lr": 0.01,
            "warmup_steps": 5,
            "log_every": 2,
            **trainer,
        },
    }
    config = {"model": model, "task": keys, "trainer": settings}
    torch.manual_seed(settings["seed"])
    made = tasks.make(keys, tasks.prepare(keys), seed=settings["seed"])
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    net = seqzoo.build(vocab_size=made.tokenizer.vocab_size, **model)
    return train(net, made, settings, folder, config=config, resume=resume, quiet=True)


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / name / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", FAMILIES)
def test_resume_is_exact(name: str, tmp_path: Path, text_file: Path) -> None:
    """Stopped at step 7 and resumed to 12, dropout and carried state included: the same bits."""
    alone, parts = tmp_path / "alone", tmp_path / "parts"
    fit(alone, text_file, name, max_steps=12, checkpoint_every=7, lr_end=1.0)
    fit(parts, text_file, name, max_steps=7, lr_end=1.0)
    assert not same(weights(alone), weights(parts))
    summary = fit(parts, text_file, name, resume=True, max_steps=12, lr_end=1.0)
    assert summary["steps"] == 12 and summary["tokens"] == 12 * 64
    assert same(weights(alone), weights(parts))
    mine, other = (
        load_file(f / "checkpoints" / "last" / "state.safetensors") for f in (alone, parts)
    )
    assert same(mine, other)
    steps = [line["step"] for line in metrics(parts)]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("lstm", "transformer") else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_a_killed_run_resumes_exactly(name: str, tmp_path: Path, text_file: Path) -> None:
    """SIGKILL at any moment, then `resume=auto`: the weights of the run that was left alone."""
    base = [
        sys.executable,
        "-m",
        "seqzoo",
        "train",
        f"model={name}",
        "task=charlm",
        f"task.path={text_file}",
        "model.dim=16",
        "model.n_layers=1",
        "task.seq_len=16",
        "task.batch_size=4",
        "task.sample_tokens=4",
        "trainer.max_seconds=null",
        "trainer.max_steps=200",
        "trainer.checkpoint_every=10",
        "trainer.eval_every=100",
        "trainer.dtype=float32",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = tmp_path / "alone"
    subprocess.run(
        [*base, f"hydra.run.dir={alone}"],
        env=env,
        cwd=tmp_path,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    process = subprocess.Popen(base, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (
        not list(tmp_path.glob(f"runs/charlm/{name}/*/checkpoints/step-*[2-9]?"))
        and time.monotonic() < deadline
    ):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = tmp_path.glob(f"runs/charlm/{name}/*")
    assert not (killed / "summary.json").exists()
    subprocess.run(
        [*base, "resume=auto"], env=env, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL
    )
    assert json.loads((killed / "summary.json").read_text())["steps"] == 200
    assert same(weights(alone), weights(killed))
    logged = [line["step"] for line in metrics(killed) if "train/loss" in line]
    assert logged == list(range(10, 201, 10))


def test_interrupting_leaves_a_run_to_resume(tmp_path: Path, text_file: Path) -> None:
    """Signalled once the log has its first lines, so that the trainer is sure to be training."""
    wait = f"until [ -s {tmp_path}/metrics.jsonl ]; do sleep 0.1; done; kill -INT {os.getpid()}"
    timer = subprocess.Popen(["sh", "-c", wait])
    summary = fit(tmp_path, text_file, max_seconds=60)
    timer.wait()
    assert summary["status"] == "interrupted" and summary["train_seconds"] < 50
    more = fit(tmp_path, text_file, resume=True, max_steps=summary["steps"] + 5)
    assert more["status"] == "finished" and more["steps"] == summary["steps"] + 5


def test_what_a_run_leaves(tmp_path: Path, text_file: Path) -> None:
    summary = fit(tmp_path, text_file, max_steps=20, eval_every=10, sample_every=10)
    for name in (
        "metrics.jsonl",
        "summary.json",
        "samples.txt",
        "model/config.json",
        "model/tokenizer.json",
    ):
        assert (tmp_path / name).stat().st_size > 0
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    wanted = "model task parameters steps tokens train_seconds tokens_per_second device dtype seed"
    assert {*wanted.split(), "data_sha256", "versions"} <= set(summary) and summary[
        "status"
    ] == "finished"
    for name in ("last", "best"):
        checkpoint.verify(tmp_path / "checkpoints" / name)
        assert {"val/loss", "val/stream_loss"} <= set(summary[name])
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) <= 2

    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for tag in (
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/tokens_per_second",
        "val/stream_loss",
    ):
        assert tag in board.Tags()["scalars"], tag
    assert [e.step for e in board.Scalars("train/loss")] == list(range(2, 21, 2))
    assert [e.step for e in board.Scalars("val/loss")] == [10, 20]  # the last step evaluated once
    assert board.Tags()["tensors"] == ["sample/text_summary"]
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_resuming_draws_no_point_twice(tmp_path: Path, text_file: Path) -> None:
    """A run that died at step 10 goes on from step 6: what it logged in between is taken back."""
    checkpoints = tmp_path / "checkpoints"
    fit(tmp_path, text_file, max_steps=6)
    shutil.copytree(checkpoints / "step-00000006", tmp_path / "kept")
    fit(tmp_path, text_file, resume=True, max_steps=10)
    shutil.copytree(tmp_path / "kept", checkpoints / "step-00000006", dirs_exist_ok=True)
    checkpoint.point(checkpoints, "last", checkpoints / "step-00000006")
    fit(tmp_path, text_file, resume=True, max_steps=14)
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [e.step for e in board.Scalars("train/loss")] == list(range(2, 15, 2))
    assert [line["step"] for line in metrics(tmp_path) if "train/loss" in line] == list(
        range(2, 15, 2)
    )


def test_other_data_is_noticed(tmp_path: Path, text_file: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text())
    fit(tmp_path, text, max_steps=2)
    text.write_text(text_file.read_text()[1:])
    with pytest.raises(seqzoo.UserError, match="trained on other data"):
        fit(tmp_path, text, resume=True, max_steps=4)
    with pytest.raises(seqzoo.UserError, match="data has changed"):
        seqzoo.load(tmp_path).evaluate()


def test_a_text_of_one_line(tmp_path: Path) -> None:
    """The default prompt, a new line, is not in it."""
    text = tmp_path / "text.txt"
    text.write_text("acgtgca" * 400)
    fit(tmp_path, text, max_steps=2)
    assert len(seqzoo.load(tmp_path).generate("", 20)) == 20


def test_a_growing_state_is_not_carried(tmp_path: Path, text_file: Path) -> None:
    with pytest.raises(seqzoo.UserError, match="task.carry=auto"):
        fit(tmp_path, text_file, "transformer", max_steps=2, task={"carry": True})


def test_a_flipped_bit_is_noticed(tmp_path: Path, text_file: Path) -> None:
    fit(tmp_path, text_file, max_steps=2)
    path = tmp_path / "checkpoints" / "last" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(seqzoo.UserError, match="changed since it was written"):
        fit(tmp_path, text_file, resume=True, max_steps=4)
    path.unlink()
    with pytest.raises(seqzoo.UserError, match="missing"):
        seqzoo.load(tmp_path, checkpoint="last")


def test_weights_of_another_model_are_refused(tmp_path: Path, text_file: Path) -> None:
    fit(tmp_path, text_file, max_steps=2)
    config = json.loads((tmp_path / "config.yaml").read_text())
    config["model"]["dim"] = 24
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(seqzoo.UserError, match="weights of another model"):
        seqzoo.load(tmp_path)


def test_accumulation_is_a_larger_batch(tmp_path: Path, text_file: Path) -> None:
    """Blocks of one epoch come in one order, so two batches of 4 are a batch of 8."""
    one = {"carry": False, "batch_size": 8}
    two = {"carry": False, "batch_size": 4}
    a, b = tmp_path / "a", tmp_path / "b"
    fit(a, text_file, "gru", task=one, dropout=0.0, max_steps=3, grad_clip=None)
    fit(
        b, text_file, "gru", task=two, dropout=0.0, max_steps=3, grad_clip=None, grad_accumulation=2
    )
    for name, weight in weights(a).items():
        torch.testing.assert_close(weights(b)[name], weight, atol=1e-4, rtol=0)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, text_file: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower trainer.lr"):
        fit(tmp_path, text_file, "rnn", max_steps=60, lr=100.0, grad_clip=None, weight_decay=0.9)


@pytest.mark.parametrize("limit", ({"max_steps": 5}, {"max_epochs": 0.02}, {"max_seconds": 2}))
def test_the_first_limit_ends_the_run(
    limit: dict[str, float], tmp_path: Path, text_file: Path
) -> None:
    generous = {"max_steps": 10_000, "max_epochs": 1000, "max_seconds": 600}
    summary = fit(tmp_path, text_file, **{**generous, **limit})
    last = [line["train/lr"] for line in metrics(tmp_path) if "train/lr" in line][-1]
    assert last < 0.01 * 0.7 and summary["steps"] < 10_000  # the schedule came down by that limit


def test_the_schedule() -> None:
    warm = [schedule(step, 0.0, warmup_steps=4, lr_end=0.1) for step in range(5)]
    assert warm == [0.25, 0.5, 0.75, 1.0, 1.0]
    falling = [schedule(100, p / 10, warmup_steps=4, lr_end=0.1) for p in range(11)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 1 and falling[-1] == pytest.approx(0.1)
    assert schedule(100, 2.0, warmup_steps=4, lr_end=0.1) == pytest.approx(0.1)


def test_parameter_groups() -> None:
    model = seqzoo.build("rwkv4", vocab_size=9, dim=16, n_layers=2)
    groups = adamw(model, lr=1.0, betas=(0.9, 0.99), weight_decay=0.5).param_groups
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    found = {id(p): g for g in groups for p in g["params"]}
    mixer = model.layers[0].mixer
    assert found[id(mixer.time_decay)]["lr"] == 2 and found[id(mixer.time_first)]["lr"] == 3
    assert found[id(mixer.key.weight)]["weight_decay"] == 0.5
    for parameter in (mixer.time_mix_k, model.embedding.weight, model.norm_out.weight):
        assert found[id(parameter)]["weight_decay"] == 0


@pytest.mark.parametrize("p", (0.1, 0.5))
def test_dropout_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    layer = Dropout(p)
    x = torch.ones(1001, 333)
    y = layer(x)
    assert (y == 0).float().mean() == pytest.approx(p, abs=0.005)
    assert y.mean() == pytest.approx(1, abs=0.01)
    assert layer.eval()(x) is x
    neighbours = ((y[:, :-1] == 0) & (y[:, 1:] == 0)).float().mean()
    assert neighbours == pytest.approx(p * p, abs=0.005)  # bytes of one word are independent


def test_a_save_in_progress_is_never_seen(tmp_path: Path, text_file: Path) -> None:
    fit(tmp_path, text_file, max_steps=2)
    draft = tmp_path / "checkpoints" / ".step-00000009.1"
    shutil.copytree(tmp_path / "checkpoints" / "last", draft)
    (draft / "manifest.json").unlink()
    assert seqzoo.load(tmp_path, checkpoint="last").model.n_parameters() > 0
    with pytest.raises(seqzoo.UserError, match="not a checkpoint"):
        checkpoint.verify(draft)


def test_an_evaluation_that_used_up_the_time_is_not_repeated(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqzoo.tasks.charlm import CharLM

    evaluate, samples = CharLM.evaluate, []

    def slowly(self: Any, *more: Any, **named: Any) -> Any:
        time.sleep(5)
        return evaluate(self, *more, **named)

    monkeypatch.setattr(CharLM, "evaluate", slowly)
    monkeypatch.setattr(CharLM, "sample", lambda *_: samples.append(1) or "text")
    summary = fit(tmp_path / "a", text_file, max_seconds=5, eval_every=1, sample_every=1)
    lines = (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    assert summary["steps"] == 1 and len(samples) == 1
    assert sum("val/loss" in line for line in lines) == 1
    assert summary["val/loss"] == summary["last"]["val/loss"]
