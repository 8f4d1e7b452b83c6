"""The trainer: a run stopped and resumed is the run left alone; checkpoints are whole or refused;
logs are complete."""

import functools
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import seqzoo
from seqzoo import tasks
from seqzoo.config import files
from seqzoo.models.block import Dropout
from seqzoo.models.zoo import FAMILIES, model_keys
from seqzoo.runs.checkpoint import Checkpoints
from seqzoo.runs.directory import RunDirectory
from seqzoo.runs.tensors import load_weights, save_weights
from seqzoo.training import schedules
from seqzoo.training.device import pick_dtype
from seqzoo.training.hooks import EarlyStopping, Hook
from seqzoo.training.loggers import Logger
from seqzoo.training.loop import train
from seqzoo.training.optimizers import Muon, adamw, muon
from seqzoo.training.tables import OPTIMIZERS, SCHEDULES, make
from seqzoo.training.terminal import evaluation_line
from seqzoo.training.training import Training

SMALL = {"dim": 16, "n_layers": 1, "n_heads": 2}
OF_SECTION = {
    "lr": "optim",
    "weight_decay": "optim",
    "warmup_steps": "schedule",
    "warmup_share": "schedule",
    "lr_end": "schedule",
}


def fit(
    folder: Path,
    text: Path,
    name: str = "lstm",
    *,
    resume: bool = False,
    dropout: float = 0.1,
    task: dict[str, Any] = {},
    optim: str = "adamw",
    schedule: str = "cosine",
    logger: dict[str, Any] | None = None,
    hooks: Any = (),
    change: Any = lambda task: None,
    quiet: bool = True,
    **keys: Any,
) -> dict[str, Any]:
    """Train a small model on a text. `keys` are of the trainer, the optimiser or the schedule;
    `change` gets the task before it is trained."""
    config = {
        "model": small_model(name, dropout),
        "architecture": {"name": "decoder_only"},
        "task": {
            **files.defaults("task", "charlm"),
            "path": str(text),
            "seq_len": 16,
            "batch_size": 4,
            "sample_tokens": 8,
            **task,
        },
        "optim": {**files.defaults("optim", optim), "lr": 0.01},
        "schedule": {
            **files.defaults("schedule", schedule),
            "warmup_steps": 5,
            "warmup_share": 1.0,
        },
        "trainer": {
            **files.defaults("trainer", "default"),
            "max_seconds": None,
            "dtype": "float32",
            "threads": torch.get_num_threads(),  # whatever else is running
            "log_every": 2,
        },
    }
    for key, value in keys.items():
        config[OF_SECTION.get(key, "trainer")][key] = value
    if logger is not None:
        config["logger"] = logger
    seed = config["trainer"]["seed"]
    torch.manual_seed(seed)
    made = tasks.make(config["task"], tasks.prepare(config["task"]), seed=seed)
    change(made)
    folder.mkdir(exist_ok=True)
    directory = RunDirectory(folder)
    directory.write_config(config)
    model = seqzoo.build(**made.sizes(), **config["model"])
    return train(model, made, config, directory, hooks=hooks, resume=resume, quiet=quiet)


def small_model(name: str, dropout: float) -> dict[str, Any]:
    known = files.defaults("model", name)
    return model_keys(name, **{k: v for k, v in SMALL.items() if k in known}, dropout=dropout)


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
    [name if name == "lstm" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
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


def test_a_second_signal_leaves_a_summary(tmp_path: Path, text_file: Path) -> None:
    class Impatient(Hook):
        every = 3

        def on_step(self, training: Training) -> None:
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, text_file, max_steps=9, hooks=[Impatient()])
    summary = RunDirectory(tmp_path).summary
    assert summary["status"] == "interrupted" and summary["steps"] == 3


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
        RunDirectory(tmp_path).checkpoints.verify(name)
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
    Checkpoints(checkpoints).point("last", checkpoints / "step-00000006")
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


@pytest.mark.parametrize("name", ("model/model.safetensors", "model/config.json"))
@pytest.mark.parametrize("size", (0, 100))
def test_a_truncated_file_is_named(name: str, size: int, tmp_path: Path, text_file: Path) -> None:
    fit(tmp_path, text_file, max_steps=2)
    os.truncate(tmp_path / name, size)
    with pytest.raises(seqzoo.UserError, match=f"{name}: .*damaged.*train the model again"):
        seqzoo.load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path, text_file: Path) -> None:
    fit(tmp_path, text_file, max_steps=2)
    directory = RunDirectory.open(tmp_path)
    config = directory.config
    directory.write_config({**config, "model": {**config["model"], "dim": 24}})
    with pytest.raises(seqzoo.UserError, match="weights of another model"):
        seqzoo.load(tmp_path)


def test_weights_that_are_parts_of_one_buffer(tmp_path: Path) -> None:
    """As cuDNN has those of a recurrent layer."""
    models = [seqzoo.build("gru", vocab_size=11, tie_embeddings=True) for _ in range(2)]
    for model in models:
        cell = model.layers[0].mixer.cell
        weights = list(cell.parameters())
        parts = torch.cat([w.detach().flatten() for w in weights]).split(
            [w.numel() for w in weights]
        )
        for weight, part in zip(weights, parts, strict=True):
            weight.data = part.view_as(weight)
    save_weights(models[0], tmp_path / "weights")
    load_weights(tmp_path / "weights", models[1])
    expected, found = (model.state_dict() for model in models)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert models[1].head.weight is models[1].embedding.weight


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
    with pytest.raises(FloatingPointError, match="lower optim.lr"):
        fit(tmp_path, text_file, "rnn", max_steps=60, lr=100.0, grad_clip=None, weight_decay=0.9)


@pytest.mark.parametrize("limit", ({"max_steps": 5}, {"max_epochs": 0.02}, {"max_seconds": 2}))
def test_the_first_limit_ends_the_run(
    limit: dict[str, float], tmp_path: Path, text_file: Path
) -> None:
    generous = {"max_steps": 10_000, "max_epochs": 1000, "max_seconds": 600}
    summary = fit(tmp_path, text_file, **{**generous, **limit})
    last = [line["train/lr"] for line in metrics(tmp_path) if "train/lr" in line][-1]
    assert last < 0.01 * 0.7 and summary["steps"] < 10_000  # the schedule came down by that limit


def test_cosine() -> None:
    factor = schedules.cosine(warmup_steps=4, warmup_share=1.0, lr_end=0.1)
    assert [factor(step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    falling = [factor(100, p / 10) for p in range(11)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 1 and falling[-1] == pytest.approx(0.1)
    assert factor(100, 2.0) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "linear": [1, 0.8875, 0.775, 0.55, 0.1, 0.1],
        "wsd": [1, 1, 1, 1, 0.1, 0.1],
        "constant": [1, 1, 1, 1, 1, 1],
    }.items(),
)
def test_other_schedules(name: str, expected: list[float]) -> None:
    keys = {**files.defaults("schedule", name), "warmup_steps": 0}
    factor = make("schedule", {**keys, **({"lr_end": 0.1} if "lr_end" in keys else {})})
    got = [factor(100, progress) for progress in (0, 0.125, 0.25, 0.5, 1, 1.5)]
    assert got == pytest.approx(expected)


def test_wsd_decays_in_its_share() -> None:
    factor = schedules.wsd(warmup_steps=0, warmup_share=1.0, decay_share=0.2, lr_end=0.0)
    assert [factor(9, p) for p in (0.8, 0.9, 0.95)] == pytest.approx([1, 0.5, 0.25])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_short_run_reaches_its_learning_rate(name: str) -> None:
    """The warm-up ends at its share of the run, though its steps are not over."""
    flat = {"lr_end": 1.0} if name != "constant" else {}
    factor = make("schedule", {**files.defaults("schedule", name), **flat})
    assert factor(3, 0.05) == pytest.approx(0.5) and factor(6, 0.1) == 1.0
    steps_alone = make(
        "schedule", {**files.defaults("schedule", name), **flat, "warmup_share": 1.0}
    )
    assert steps_alone(6, 0.1) == pytest.approx(0.07)
    assert all(factor(n, n / 1000) == steps_alone(n, n / 1000) for n in range(1000))


def test_parameter_groups() -> None:
    model = seqzoo.build("rwkv4", vocab_size=9, dim=16, n_layers=2)
    groups = adamw(model, lr=1.0, betas=[0.9, 0.99], weight_decay=0.5).param_groups
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
        Checkpoints(draft.parent).verify(draft)


def test_an_evaluation_that_used_up_the_time_is_not_repeated(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqzoo.tasks.charlm import CharLM

    evaluate, samples = CharLM.evaluate, []

    def slowly(self: Any, *more: Any, **named: Any) -> Any:
        time.sleep(2)
        return evaluate(self, *more, **named)

    monkeypatch.setattr(CharLM, "evaluate", slowly)
    monkeypatch.setattr(CharLM, "sample", lambda *_: samples.append(1) or "text")
    summary = fit(tmp_path / "a", text_file, max_seconds=2, eval_every=1, sample_every=1)
    lines = (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    assert summary["steps"] == 1 and len(samples) == 1
    assert sum("val/loss" in line for line in lines) == 1
    assert summary["val/loss"] == summary["last"]["val/loss"]


# ---- optimisers


def muon_of(model: Any) -> Any:
    return muon(
        model,
        lr=1.0,
        weight_decay=0.5,
        betas=[0.9, 0.99],
        momentum=0.95,
        newton_schulz_steps=5,
    )


def test_muon_has_the_matrices_of_the_blocks() -> None:
    model = seqzoo.build("rwkv7", vocab_size=9, dim=16, n_layers=2, n_heads=1)
    optimizer = muon_of(model)
    orthogonal, rest = ({id(p) for g in part.param_groups for p in g["params"]}
                        for part in optimizer.parts)  # fmt: skip
    every = {id(p) for p in model.parameters()}
    assert orthogonal | rest == every and not orthogonal & rest
    names = {name for name, p in model.named_parameters() if id(p) in orthogonal}
    assert "layers.1.mixer.key.weight" in names
    assert not any("embedding" in name or "head" in name or "norm" in name for name in names)
    learned = seqzoo.build("transformer", vocab_size=9, position="learned", **SMALL)
    matrices = muon_of(learned).parts[0].param_groups
    table = learned.layers[0].table
    assert all(p is not table for group in matrices for p in group["params"])


def test_muon_is_that_of_torch() -> None:
    torch.manual_seed(0)
    shapes = [(8, 8), (32, 8), (8, 8), (8, 24), (32, 8)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    keys = {"lr": 0.1, "weight_decay": 0.5}
    torchs = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **keys)
    optimizers = Muon(ours, **keys), torchs
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=0.02)  # the iterations are in bfloat16


@pytest.mark.parametrize("name", ("lstm", "rwkv4", "transformer"))
def test_muon_resumes_exactly(name: str, tmp_path: Path, text_file: Path) -> None:
    alone, parts = tmp_path / "alone", tmp_path / "parts"
    fit(alone, text_file, name, optim="muon", max_steps=8, checkpoint_every=5, lr_end=1.0)
    fit(parts, text_file, name, optim="muon", max_steps=5, lr_end=1.0)
    fit(parts, text_file, name, optim="muon", resume=True, max_steps=8, lr_end=1.0)
    assert same(weights(alone), weights(parts))


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_loss_falls(optim: str, tmp_path: Path, text_file: Path) -> None:
    fit(tmp_path, text_file, "gru", optim=optim, max_steps=40)
    losses = [line["train/loss"] for line in metrics(tmp_path) if "train/loss" in line]
    assert losses[-1] < 0.85 * losses[0]


# ---- hooks and loggers


class Recording(Hook):
    every = 3

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_start(self, training: Training) -> None:
        self.calls.append(("start", training.step))

    def on_step(self, training: Training) -> None:
        self.calls.append(("step", training.step, training.is_last_step))

    def on_end(self, training: Training) -> None:
        self.calls.append(("end", training.step, training.status, sorted(training.metrics)[0]))


def test_a_hook_from_outside(tmp_path: Path, text_file: Path) -> None:
    hook = Recording()
    fit(tmp_path, text_file, max_steps=6, hooks=[hook])
    steps = [("step", 3, False), ("step", 6, True)]
    assert hook.calls == [("start", 0), *steps, ("end", 6, "finished", "val/bpc")]


def test_a_hook_can_end_the_run(tmp_path: Path, text_file: Path) -> None:
    class Stop(Hook):
        every = 4

        def on_step(self, training: Training) -> None:
            training.evaluate(quick=True)
            training.stop()

    summary = fit(tmp_path, text_file, max_steps=60, hooks=[Stop()])
    assert summary["steps"] == 4 and summary["status"] == "finished"


def test_a_hook_reads_the_loss_that_was_just_logged(tmp_path: Path, text_file: Path) -> None:
    losses = []

    class Read(Hook):
        every = 2

        def on_step(self, training: Training) -> None:
            losses.append(training.mean_loss())

    fit(tmp_path, text_file, max_steps=4, log_every=2, hooks=[Read()])
    assert losses == [line["train/loss"] for line in metrics(tmp_path) if "train/loss" in line]


class RecordingLogger:
    """Everything that a logger gets, by the method."""

    last: "RecordingLogger"

    def __init__(self, *, colour: str) -> None:
        self.got: dict[str, list[Any]] = {"colour": [colour]}
        RecordingLogger.last = self

    def __getattr__(self, name: str) -> Any:
        def note(*args: Any, **more: Any) -> None:
            self.got.setdefault(name, []).append((args, more))

        return note


def test_a_logger_gets_everything(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqzoo.training import tables

    monkeypatch.setitem(tables.LOGGERS, "recording", f"{__name__}:RecordingLogger")
    summary = fit(tmp_path, text_file, max_steps=4, logger={"recording": {"colour": "red"}})
    got = RecordingLogger.last.got
    assert got["colour"] == ["red"]
    (((directory, config), more),) = got["start"]
    assert directory.path == tmp_path and config["optim"]["name"] == "adamw" and more["step"] == 0
    assert more["metrics"][0] == "val/stream_loss"
    lines = [{**position, **values} for (values, position), _ in got["scalars"]]
    assert lines == metrics(tmp_path)
    assert [(tag, step) for (tag, _, step), _ in got["text"]] == [("sample", 4)]
    assert got["close"] == [((summary,), {})]
    assert not (tmp_path / "tensorboard").exists()


def test_a_failed_run_closes_its_loggers(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqzoo.training import tables

    monkeypatch.setitem(tables.LOGGERS, "recording", f"{__name__}:RecordingLogger")
    logger = {"recording": {"colour": "red"}}
    with pytest.raises(FloatingPointError):
        fit(tmp_path, text_file, "rnn", logger=logger, max_steps=60, lr=100.0, grad_clip=None,
            weight_decay=0.9)  # fmt: skip
    assert RecordingLogger.last.got["close"] == [(({"status": "failed"},), {})]
    assert not (tmp_path / "checkpoints").exists()  # a loss that is not finite is never saved


@pytest.mark.parametrize("fails", ("start", "close"))
def test_a_logger_that_fails_leaves_none_open(
    fails: str, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqzoo.training import tables

    class Failing(Logger):
        pass

    def fail(*args: Any, **more: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(Failing, fails, fail)
    monkeypatch.setattr(sys.modules[__name__], "Failing", Failing, raising=False)
    for name in ("RecordingLogger", "Failing"):
        monkeypatch.setitem(tables.LOGGERS, name, f"{__name__}:{name}")
    sections = [("RecordingLogger", {"colour": "red"}), ("Failing", {})]
    for ordered in (sections, sections[::-1]):
        with pytest.raises(OSError, match="no connection"):
            fit(tmp_path, text_file, max_steps=2, logger=dict(ordered))
        if ordered is sections or fails == "close":
            assert len(RecordingLogger.last.got["close"]) == 1


def test_the_model_is_among_the_first_columns_of_hparams(tmp_path: Path, text_file: Path) -> None:
    fit(tmp_path, text_file, max_steps=2)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = board.summary_metadata["_hparams_/experiment"].plugin_data.content
    columns = [info.name for info in HParamsPluginData.FromString(content).experiment.hparam_infos]
    assert sorted(columns)[:2] == ["architecture", "model"]
    assert len(set(columns)) == len(columns) > 30


def test_wandb_offline(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    keys = {**files.defaults("logger", "wandb"), "mode": "offline"}
    fit(tmp_path / "run", text_file, max_steps=4, logger={"wandb": keys})
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))


def test_trackio_on_this_machine(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    keys = files.defaults("logger", "trackio")
    fit(tmp_path / "run", text_file, max_steps=4, logger={"trackio": keys})
    assert list((tmp_path / "trackio").glob("seqzoo*"))
    assert trackio.context_vars.current_run.get() is None  # which is finished again at the exit


def test_a_logger_that_is_not_installed(tmp_path: Path, text_file: Path) -> None:
    from seqzoo.training.loggers import _extra

    with pytest.raises(seqzoo.UserError, match=r"pip install 'seqzoo\[no_such_logger\]'"):
        _extra("no_such_logger")


# ---- metrics


def test_the_higher_is_better_where_a_task_declares_it(tmp_path: Path, text_file: Path) -> None:
    """The accuracy of this task falls with every evaluation: its first is the best."""
    values = iter((0.5, 0.4, 0.3, 0.5, 0.2, 0.2))

    def change(task: Any) -> None:
        metric = type(task.metrics[0])
        task.metrics = (metric("accuracy", higher_is_better=True, unit="%"),)
        task.evaluate = lambda model, split, *, quick: {"val/accuracy": next(values)}

    summary = fit(
        tmp_path,
        text_file,
        max_steps=6,
        eval_every=2,
        checkpoint_every=2,
        average_checkpoints=2,
        change=change,
    )
    assert summary["best_step"] == 2 and summary["exported"] == "best"
    assert summary["best"]["val/accuracy"] == 0.5 and summary["last"]["val/accuracy"] == 0.3
    assert RunDirectory(tmp_path).checkpoints.best() == {"value": 0.5, "step": 2}


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_evaluations_and_the_time_left(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqzoo.training import terminal

    screen = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "REFRESH", 0.0)
    fit(tmp_path, text_file, max_steps=6, eval_every=4, quiet=False)
    shown = [line for line in screen.getvalue().split("\r") if "|" in line]
    assert any(
        " 50%|" in line and "step 3  train loss" in line and "left" in line for line in shown
    )
    assert any("step 4  evaluating" in line for line in shown)
    assert "100%" in shown[-1] and "step 6  sampling" in shown[-1]


def test_the_line_of_an_evaluation_fits_the_terminal() -> None:
    from seqzoo.tasks.task import Metric

    declared = [Metric("loss"), Metric("token_accuracy", unit="%"), *map(Metric, "abcdefgh")]
    values = {f"{s}/{m.name}": 40.123456 for s in ("val", "test") for m in declared}
    untimed = evaluation_line(12_345, None, values, declared)
    line = evaluation_line(12_345, 678.9, values, declared)
    assert untimed == line.replace("   679 s", " " * 8)  # of an earlier step: the same columns
    assert line.startswith("step 12,345    679 s  loss 40.1235  token_accuracy   40.1%  a 40.1235")
    assert len(line) <= 80


# ---- the device


def test_nothing_is_fetched_from_the_device_in_a_step(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is a tensor until its line of the log, so that a GPU is not waited for."""
    fetched: Counter[str] = Counter()
    for name in ("item", "__float__", "__int__", "__bool__", "tolist", "numpy"):
        original = getattr(torch.Tensor, name)

        def count(self: Any, *args: Any, name: str = name, original: Any = original) -> Any:
            if self.is_floating_point():
                fetched[name] += 1
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, functools.wraps(original)(count))

    class Check(Hook):
        every = 5

        def on_start(self, training: Training) -> None:
            fetched.clear()

        def on_step(self, training: Training) -> None:
            assert not fetched or training.step > 5, fetched

    fit(tmp_path, text_file, max_steps=6, log_every=6, hooks=[Check()])
    assert fetched


@pytest.mark.parametrize(
    ("known", "instructions", "expected"),
    [(True, True, "bfloat16"), (True, False, "float32"), (False, True, "float32")],
)
def test_bfloat16_on_a_cpu_needs_its_instructions(
    known: bool, instructions: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known)
    assert pick_dtype("auto", torch.device("cpu")) == expected
    assert pick_dtype("bfloat16", torch.device("cpu")) == "bfloat16"


def test_a_closed_window_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device does after a step was launched counts as time of the step, not of a hook."""
    from seqzoo.training.meter import Meter

    meter = Meter(torch.device("cpu"), step_seconds=1.0)
    monkeypatch.setattr(meter, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: time.sleep(0.02))
    meter.settle()
    assert meter.seconds >= 0.02 and meter.step_seconds >= 1.02


@pytest.mark.parametrize("name", ("lstm", "transformer", "rwkv6", "rwkv7", "deltanet"))
@pytest.mark.parametrize("dropout", (0.0, 0.2))
def test_checkpointing_changes_no_bit(
    name: str, dropout: float, tmp_path: Path, text_file: Path
) -> None:
    kept, again = tmp_path / "kept", tmp_path / "again"
    fit(kept, text_file, name, dropout=dropout, max_steps=4)
    fit(again, text_file, name, dropout=dropout, max_steps=4, checkpointing=True)
    assert same(weights(kept), weights(again))


def test_checkpointing_keeps_only_the_inputs_of_blocks() -> None:
    from seqzoo.training.forward import Forward

    kept = {}
    for checkpointing in (False, True):
        model = seqzoo.build("transformer", vocab_size=9, dropout=0.0, **{**SMALL, "n_layers": 4})
        forward = Forward(model, torch.device("cpu"), "float32", checkpointing=checkpointing)
        sizes: list[int] = []

        def pack(x: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            forward(torch.zeros(2, 32, dtype=torch.long), None)
        kept[checkpointing] = sum(sizes)
    assert kept[True] < kept[False] / 3


# ---- the run directory


def test_two_runs_of_one_second_get_two_directories(tmp_path: Path) -> None:
    first, second = (RunDirectory.claim(tmp_path / "run") for _ in range(2))
    assert (first.path.name, second.path.name) == ("run", "run_2")
    second.remove_if_empty()
    assert not second.path.exists() and RunDirectory.find([tmp_path], "config.yaml")
    with pytest.raises(seqzoo.UserError, match="no run in it"):
        RunDirectory.find([tmp_path])


def test_a_run_directory_read_back(tmp_path: Path, text_file: Path) -> None:
    with pytest.raises(seqzoo.UserError, match="no run directory"):
        RunDirectory.open(tmp_path)
    summary = fit(tmp_path, text_file, max_steps=2)
    directory = RunDirectory.open(tmp_path)
    assert directory.summary == summary and not directory.unfinished()
    assert directory.metrics() == metrics(tmp_path)
    assert directory.sizes() == {"vocab_size": directory.sizes()["vocab_size"]}
    assert directory.tokenizer_path() and not directory.tokenizer_path("source_tokenizer")
    directory.mark_failed("out of memory")
    assert directory.summary["status"] == "failed" and directory.unfinished()
    assert directory.summary["model"] == "lstm"
    changed = {**directory.config, "optim": {"name": "adamw", "lr": 1e-5}}
    directory.write_config(changed)
    directory.describe_model(changed, directory.sizes(), {})
    for read in (directory, RunDirectory.open(directory.model)):
        assert read.config["optim"]["lr"] == 1e-5


def test_the_mean_of_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    models = [seqzoo.build("lstm", vocab_size=9, dim=16, n_layers=1) for _ in range(3)]
    for step, model in enumerate(models):
        model.load_state_dict(models[1].state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += step - 1
        optimizer = torch.optim.AdamW(model.parameters())
        checkpoints.save(step, model=model, optimizer=optimizer, state=None, progress={})
    expected = {name: value.clone() for name, value in models[1].state_dict().items()}
    checkpoints.load_mean([checkpoints.at(step) for step in range(3)], models[0])
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(value, expected[name])


# ---- evaluations as often as a curve needs


def evaluations(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(x["step"], x["val/stream_loss"]) for x in lines if "val/stream_loss" in x]


@pytest.mark.parametrize(("steps", "every"), [(240, 20), (130, 65 / 6), (60, 10), (4, 4)])
def test_a_short_run_has_a_curve(tmp_path: Path, text_file: Path, steps: int, every: float) -> None:
    fit(tmp_path, text_file, max_steps=steps, sample_every=None)
    due = [math.ceil(every * part) for part in range(1, int(steps / every) + 1)]
    assert [step for step, _ in evaluations(tmp_path)] == due


def test_a_resumed_run_is_evaluated_at_the_same_steps(tmp_path: Path, text_file: Path) -> None:
    class Stop(Hook):
        every = 55

        def on_step(self, training: Any) -> None:
            training.interrupted = True

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    keys = {"max_steps": 125, "sample_every": None}
    fit(whole, text_file, **keys)
    fit(parts, text_file, **keys, hooks=[Stop()])
    fit(parts, text_file, **keys, resume=True)
    assert evaluations(parts) == evaluations(whole) and len(evaluations(whole)) == 12


def test_evaluations_take_a_small_part_of_the_time(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes 5 % of the time, so after one there is no time for a second before the end."""
    from seqzoo.tasks.charlm import CharLM

    evaluate = CharLM.evaluate

    def slowly(self: Any, *more: Any, **named: Any) -> Any:
        time.sleep(0.2)
        return evaluate(self, *more, **named)

    monkeypatch.setattr(CharLM, "evaluate", slowly)
    fit(tmp_path, text_file, max_seconds=4, sample_every=None)
    assert len(evaluations(tmp_path)) == 2


def test_what_is_long_is_read_in_part_on_the_way(tmp_path: Path, text_file: Path) -> None:
    """Every point of the curve is of the first tokens; the summary is of all of them, and both are
    of the weights that the run exports."""
    task = {"val_fraction": 0.3}
    summary = fit(tmp_path, text_file, max_steps=40, sample_every=None, task=task)
    run = seqzoo.load(tmp_path)
    made = tasks.make(run.config["task"], tasks.prepare(run.config["task"]), seed=1)
    whole = made.evaluate(run.model, "val", quick=True)
    assert made.shorten() and len(made.data.val) == 12_000
    part = made.evaluate(run.model, "val", quick=True)
    assert part["val/bpc"] == pytest.approx(part["val/loss"] / math.log(2))
    assert part["val/stream_loss"] != pytest.approx(whole["val/stream_loss"], rel=1e-3)
    assert summary["best_step"] == summary["steps"] == 40  # of a loss that falls to the end
    assert evaluations(tmp_path)[-1][1] == pytest.approx(part["val/stream_loss"])
    assert summary["val/stream_loss"] == pytest.approx(whole["val/stream_loss"])


def test_early_stopping_counts_them(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second evaluation, at step 20, is the best: the third after it ends the run."""
    from seqzoo.tasks.charlm import CharLM

    values = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    keys = [f"val/{metric.name}" for metric in CharLM.metrics]
    monkeypatch.setattr(CharLM, "evaluate", lambda *_, **__: dict.fromkeys(keys, next(values)))
    stop = EarlyStopping(patience=3)
    fit(tmp_path, text_file, max_steps=120, sample_every=None, hooks=[stop])
    assert [step for step, _ in evaluations(tmp_path)] == [10, 20, 30, 40, 50]
