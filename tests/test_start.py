"""What starts with a command: the waiting of its threads, and no more modules than it needs; and
training beside other busy processes."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calls import KERNELS
from seqzoo.cli.main import SPINS
from seqzoo.training import load, optimizers
from seqzoo.training.hooks import Hook
from seqzoo.training.training import Training
from test_training import fit

UNTIL_TORCH = """
import os, sys
from seqzoo.cli.main import main

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
main(["info", "model=lstm"])
"""
TRAIN_AND_GENERATE = """
import sys
import seqzoo

run = seqzoo.train("model=rnn", "model.dim=8", "optim=muon", "task.path=" + sys.argv[1],
                   "trainer.max_steps=2", "hydra.run.dir=" + sys.argv[2], quiet=True)
run.generate("a", 40)  # by a prepared step
late = ("torch._dynamo", "sympy", "datasets", "transformers", "matplotlib", "sacrebleu")
sys.exit(", ".join(name for name in late if name in sys.modules) or 0)
"""


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
    ids=["nothing", "spincount", "policy"],
)
def test_waiting_is_bounded_before_torch_is_loaded(given: dict[str, str], seen: str) -> None:
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {key: value for key, value in os.environ.items() if key not in own} | given
    done = subprocess.run([sys.executable, "-c", UNTIL_TORCH], env=env, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout.decode().strip()) == (0, seen)


def test_training_and_generating_load_nothing_that_is_slow(tmp_path: Path, text_file: Path) -> None:
    program = [sys.executable, "-c", TRAIN_AND_GENERATE, str(text_file), str(tmp_path / "run")]
    done = subprocess.run(program, stderr=subprocess.PIPE, text=True)
    said = [line for line in done.stderr.splitlines() if KERNELS or "no kernels" not in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
def test_an_optimiser_without_the_compiler_is_torchs(name: str) -> None:
    torchs = getattr(torch.optim, name)
    if name == "Muon":
        torchs = partial(torchs, adjust_lr_fn="match_rms_adamw")
    results, calls = [], []
    for kind in (getattr(optimizers, name), torchs):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 7, bias=False)
        optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.1)
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        for step in range(4):
            layer(torch.full((3, 5), step + 1.0)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            optimizer.load_state_dict(optimizer.state_dict())
            assert layer.weight.grad is None
        results.append(layer.weight)
    exact = name == "AdamW"  # Muon's iterations are in bfloat16
    assert torch.allclose(*results, rtol=0, atol=0 if exact else 0.02)
    assert len(calls) == 8


class Each(Hook):
    """Calls a function after every step."""

    every = 1

    def __init__(self, call) -> None:
        self.call = call

    def on_step(self, training: Training) -> None:
        self.call(training)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_a_run(tmp_path: Path, text_file: Path, threads: int) -> None:
    before, seen = torch.get_num_threads(), []
    hook = Each(lambda training: seen.append(torch.get_num_threads()))
    summary = fit(tmp_path / "run", text_file, max_steps=2, threads=threads, hooks=[hook])
    assert seen == [threads, threads] and summary["threads"] == threads
    assert torch.get_num_threads() == before


def test_threads_follow_the_load(
    tmp_path: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(load, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.append(n))
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda pid: range(4))
    threads, busy = [4], iter([0.1, 1.2, 1.2, 9.0, 0.0])
    looks = [0.0, 0.0]  # the time, and what others have used until then

    def used() -> float:
        looks[:] = looks[0] + 1.0, looks[1] + next(busy)
        return looks[1]

    monkeypatch.setattr(load, "used_by_others", used)
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: looks[0]))
    fit(tmp_path / "run", text_file, max_steps=4, threads=None, quiet=False)
    assert threads == [4, 3, 1, 4]
    assert capsys.readouterr().out.count("threads: ") == 1


def test_load_is_that_of_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the cores that this process may use, here 0 and 2; neither idle nor waiting for disks."""
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu 9 9 9 9 9 9 9 0 0 0\n"
        "cpu0 100 20 30 7777 888 4 6 0 0 0\n"
        "cpu1 9999 0 0 0 0 0 0 0 0 0\n"
        "cpu2 300 0 0 7777 0 0 40 0 0 0\n"
        "intr 1 2 3\n"
    )
    monkeypatch.setattr(load, "STAT", stat)
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda pid: {0, 2})
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load, "time", SimpleNamespace(process_time=lambda: 1.5))
    assert load.used_by_others() == 5.0 - 1.5


class Clock:
    """In place of the module `time`: each look at it takes `turn` seconds."""

    def __init__(self) -> None:
        self.now, self.turn = 0.0, 3.0

    def perf_counter(self) -> float:
        self.now += self.turn
        return self.now


@pytest.mark.parametrize(("slower", "lines"), [(2, 0), (4, 1)])
def test_warning_of_a_slow_run(
    tmp_path: Path,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    slower: int,
    lines: int,
) -> None:
    clock = Clock()
    monkeypatch.setattr("seqzoo.training.meter.time", clock)

    def slow_down(training: Training) -> None:
        if training.step == 6:
            clock.turn *= slower

    fit(tmp_path / "run", text_file, max_steps=14, hooks=[Each(slow_down)], quiet=False)
    said = [line for line in capsys.readouterr().out.splitlines() if "trainer.threads" in line]
    assert len(said) == lines
    if said:
        assert said[0].startswith("slow: 5 tokens/s after 21, on ")
