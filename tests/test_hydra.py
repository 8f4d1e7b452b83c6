"""Hydra as its users know it: sweeps by any launcher, configuration folders, going on with runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import seqzoo
from calls import status

SMALL = (
    "task.batch_size=4 task.seq_len=16 task.sample_tokens=5 task.val_max_chars=600 model.dim=16 "
    "model.n_layers=1 trainer.max_seconds=null trainer.max_steps=4 trainer.dtype=float32 "
    "trainer.device=cpu"
).split()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_file: Path) -> Path:
    """A working directory with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(text_file.read_text())
    for name in ("SEQZOO_CONFIG_DIRS", "SEQZOO_PLUGINS"):
        monkeypatch.setenv(name, "")
    return tmp_path


def train(*overrides: str) -> int:
    return status("train", "task.path=text.txt", *SMALL, *overrides)


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def interrupt(folder: Path, steps: int = 2) -> None:
    """Have a finished run look as if it had been stopped."""
    path = folder / "summary.json"
    path.write_text(json.dumps({**summary(folder), "status": "interrupted", "steps": steps}))


# ---- sweeps


def test_a_failing_job_of_any_launcher_fails_the_sweep(place: Path) -> None:
    """joblib runs each job in a process of its own; an infinite learning rate makes one fail."""
    command = [sys.executable, "-m", "seqzoo", "train", "-m", "task.path=text.txt", *SMALL]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optim.lr=0.01,100"]
    command += ["trainer.max_steps=30", "trainer.log_every=1", "trainer.grad_clip=null"]
    command += ["model=rwkv4", "hydra.sweep.dir=sweep"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    states = sorted(summary(path.parent)["status"] for path in place.glob("sweep/*/summary.json"))
    assert states == ["failed", "finished"], ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert "1 of 2 runs failed: see sweep" in ended.stderr
    assert "failed: not ranked" in ended.stdout and "compare sweep" in ended.stdout


def test_a_stopped_sweep_shows_what_there_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seqzoo.cli import launch

    attempt = launch.attempt

    def stopped(config: Any, directory: Any, **options: Any) -> tuple[int, Any]:
        if config["model"]["name"] == "gru":
            return launch.INTERRUPTED, None
        return attempt(config, directory, **options)

    monkeypatch.setattr(launch, "attempt", stopped)
    assert train("-m", "model=rnn,gru,lstm", "hydra.sweep.dir=sweep") == 130
    said = capsys.readouterr()
    assert "| rnn" in said.out and "| lstm" not in said.out
    assert "resume=auto goes on with it" in said.err
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert train("-m", "model=rnn,gru,lstm", "resume=auto", "hydra.sweep.dir=again") == 0
    said = capsys.readouterr()
    assert all(f"| {name}" in said.out for name in ("rnn", "gru", "lstm"))
    assert "compare again sweep/0_charlm_rnn" in said.out


def test_a_range_of_seeds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, seeds in {"2..4": [2, 3, 4], "1,7..8": [1, 7, 8], "5..5": [5]}.items():
        assert status("train", "-m", f"trainer.seed={given}", "--cfg", "job") == 0
        composed = yaml.safe_load_all(capsys.readouterr().out)
        assert [config["trainer"]["seed"] for config in composed] == seeds
    assert train("-m", "trainer.seed=2..3", "hydra.sweep.dir=sweep") == 0
    assert [summary(place / "sweep" / job)["seed"] for job in sorted(_jobs(place))] == [2, 3]
    assert capsys.readouterr().out.count("\nnext:") == 1  # at the end of the sweep


def test_a_job_returns_the_tasks_own_metric(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seqzoo.cli import sweep as module

    returned = []

    def job(cfg: Any) -> float | None:
        returned.append(original(cfg))
        return returned[-1]

    original = module.job
    monkeypatch.setattr(module, "job", job)
    assert train("-m", "model=gru,rnn", "hydra.sweep.dir=sweep") == 0
    expected = [summary(place / "sweep" / f"{n}")["val/stream_loss"] for n in _jobs(place)]
    assert returned == expected


def _jobs(place: Path) -> list[str]:
    return sorted(path.name for path in (place / "sweep").glob("*_*"))


def test_a_sweep_again_skips_and_resumes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "model=gru,rnn,lstm") == 0
    first = sorted(path.parent for path in place.glob("runs/sweeps/*/*/config.yaml"))
    interrupt(first[1])
    capsys.readouterr()
    assert train("-m", "model=gru,rnn,lstm", "resume=auto") == 0
    out = capsys.readouterr().out
    assert out.count("finished before: ") == 2 and f"resuming {first[1].relative_to(place)}" in out
    assert [summary(folder)["status"] for folder in first] == ["finished"] * 3
    assert sorted(path.parent for path in place.glob("runs/sweeps/*/*/config.yaml")) == first


def test_values_that_only_a_sweeper_knows_reach_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra's own sweeper refuses an interval, by its own message; others draw from it."""
    assert train("-m", "optim.lr=interval(0.001,0.01)") == 2
    error = capsys.readouterr().err
    assert "BasicSweeper does not support" in error and "hydra.sweep.dir" not in error


# ---- going on


def test_resume_auto_finds_any_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("model=gru", "hydra.run.dir=runs/charlm/gru/a") == 0
    assert train("model=rnn", "hydra.run.dir=runs/charlm/rnn/b") == 0
    interrupt(place / "runs/charlm/gru/a")
    capsys.readouterr()
    assert status("train", "resume=auto", "trainer.max_steps=6") == 0
    assert "resuming runs/charlm/gru/a" in capsys.readouterr().out
    assert summary(place / "runs/charlm/gru/a")["steps"] == 6
    interrupt(place / "runs/charlm/gru/a")
    assert train("resume=auto", "model=rnn", "hydra.run.dir=runs/charlm/rnn/c") == 0
    assert "nothing unfinished" in capsys.readouterr().out
    assert summary(place / "runs/charlm/rnn/c")["status"] == "finished"


def test_resume_auto_goes_on_with_the_same_experiment_only(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ("experiment=tinyshakespeare_rnn", "task.path=text.txt", *SMALL[1:])
    assert status("train", *recipe, "hydra.run.dir=runs/charlm/rnn/a") == 0
    interrupt(place / "runs/charlm/rnn/a")
    capsys.readouterr()
    assert status("train", *recipe, "resume=auto", "model.dropout=0.5") == 0
    assert "nothing unfinished" in capsys.readouterr().out
    again = (*recipe, "resume=auto", "trainer.max_steps=6")
    assert status("train", *again) == 0
    assert "resuming runs/charlm/rnn/a" in capsys.readouterr().out
    assert status("train", "resume=runs/charlm/rnn/a", "experiment=tinyshakespeare_lstm") == 2


# ---- folders and files of the user's own


def test_a_users_own_folder_of_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "own/experiment").mkdir(parents=True)
    (place / "own/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: gru\nmodel:\n  dim: 24\n"
    )
    study = "defaults:\n  - train\n  - _self_\nmodel:\n  n_layers: 3\n"
    (place / "own/study.yaml").write_text(study)
    for flag in ("--config-dir", "-cd"):
        assert status("train", flag, "own", "experiment=mine", "--cfg", "job") == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["model"]["name"] == "gru" and printed["model"]["dim"] == 24
    assert status("train", "-cd", "own", "-cn", "study", "--cfg", "job") == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["n_layers"] == 3
    assert status("train", "--help", "-cd", "own") == 0
    assert "mine" in capsys.readouterr().out
    assert (
        status("train", f"hydra.searchpath=[file://{place}/own]", "experiment=mine", "--cfg", "job")
        == 0
    )
    assert yaml.safe_load(capsys.readouterr().out)["model"]["dim"] == 24


commands = pytest.mark.parametrize("command", ("train", "bench", "exam"))


@commands
@pytest.mark.parametrize("flags", (["--info", "defaults"], ["--cfg", "all"], ["--cfg", "hydra"]))
def test_hydras_own_flags(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, flags: list[str]
) -> None:
    assert status(command, *flags, "model.n_layers=3") == 0
    assert "hydra" in capsys.readouterr().out
    assert not (place / "runs").exists()


@commands
def test_one_package_is_printed(
    place: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert status(command, "--cfg", "job", "-p", "model", "model.n_layers=3") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["n_layers"] == 3 and not printed.keys() & {"model", "trainer", "exam"}
    assert not (place / "runs").exists()


def test_a_sweep_of_benches_is_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("bench", "-m", "bench.rounds=1,2", "--cfg", "job") == 0
    printed = yaml.safe_load_all(capsys.readouterr().out)
    assert [config["bench"]["rounds"] for config in printed] == [1, 2]


def test_flags_of_a_resumed_run_do_not_start_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("model=gru", "hydra.run.dir=a") == 0
    interrupt(place / "a")
    capsys.readouterr()
    assert status("train", "resume=a", "trainer.max_steps=6", "--cfg", "job") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["name"] == "gru" and printed["trainer"]["max_steps"] == 6
    for flags in (["--info"], ["--cfg", "all"], ["--cfg", "job", "-p", "model"]):
        assert status("train", "resume=a", *flags) == 2
        assert "leave resume=a out" in capsys.readouterr().err
    assert summary(place / "a")["steps"] == 2


def test_loggers_and_hooks_are_lists(place: Path) -> None:
    assert (
        train("logger=[]", "hook=[early_stopping]", "trainer.eval_every=1", "hydra.run.dir=r") == 0
    )
    config = yaml.safe_load((place / "r/config.yaml").read_text())
    assert config["logger"] == {} and config["hook"] == {"early_stopping": {"patience": 5}}
    assert (place / "r/metrics.jsonl").exists() and not (place / "r/tensorboard").exists()


def test_overrides_in_a_list_are_explained() -> None:
    with pytest.raises(seqzoo.UserError, match=r"a list with a star, \*overrides"):
        seqzoo.train(["model=gru"])  # type: ignore[arg-type]


# ---- runs of an earlier release

MOVED_TO = {
    "trainer": {"lr": ("optim", "lr"), "weight_decay": ("optim", "weight_decay")}
    | {key: ("schedule", key) for key in ("warmup_steps", "lr_end")}
    | {key: ("task", key) for key in ("label_smoothing", "scheduled_sampling")}
}


def as_earlier(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in the sections of release 0.1."""
    model = {**config["model"], "head": config["architecture"]["name"]}
    trainer = dict(config["trainer"])
    trainer["beta1"], trainer["beta2"] = config["optim"]["betas"]
    for key, (section, name) in MOVED_TO["trainer"].items():
        trainer[key] = config[section][name]
    del trainer["checkpointing"]
    task = {k: v for k, v in config["task"].items() if k not in MOVED_TO["trainer"]}
    return {"trainer": trainer, "model": model, "task": task, "resume": None}


def test_a_run_of_an_earlier_release_is_read_and_resumed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["model=gru", "schedule.warmup_share=1.0", "trainer.checkpoint_every=2"]
    assert train(*common, "hydra.run.dir=new", "trainer.max_steps=6") == 0
    assert train(*common, "hydra.run.dir=old", "trainer.max_steps=4", "schedule.lr_end=0.05") == 0
    path = place / "old/config.yaml"
    path.write_text(yaml.safe_dump(as_earlier(yaml.safe_load(path.read_text()))))
    loaded = seqzoo.load(place / "old")
    assert loaded.config["optim"]["lr"] == 0.004 and loaded.config["architecture"]
    capsys.readouterr()
    assert status("eval", "old") == 0
    assert "val/stream_loss\t" in capsys.readouterr().out
    assert status("train", "resume=old", "trainer.max_steps=6") == 0
    assert summary(place / "old")["steps"] == 6
    assert status("info", "old") == 0
