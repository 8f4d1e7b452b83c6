"""Every file of examples/ runs, with small limits; so does a script that reads runs."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import seqzoo

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = [
    "task.tokenizer=byte",
    "task.batch_size=4",
    "task.seq_len=16",
    "task.sample_tokens=8",
    "model.dim=16",
    "model.n_layers=1",
    "trainer.max_steps=20",
    "trainer.eval_every=10",
    "trainer.device=cpu",
    "hydra.run.dir=run",
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory from which this very seqzoo is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(seqzoo.__file__).parents[1]))
    return tmp_path


Script = Callable[..., str]


@pytest.fixture
def script(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Script:
    """Runs a script in this process; returns what it prints."""

    def run(name: str, *arguments: object) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_train_and_plot(script: Script, place: Path, text_file: Path) -> None:
    printed = script("train_and_plot.py", "model=gru", f"task.path={text_file}", *SMALL)
    assert "written to run/curve.png" in printed
    assert (place / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_own_mixer(place: Path, text_file: Path) -> None:
    given = [sys.executable, EXAMPLES / "own_mixer.py", f"task.path={text_file}", *SMALL]
    done = subprocess.run(given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "All laws hold" in printed
    assert "the state after 1,000 tokens has 68 bytes" in printed  # 16 sums and a count
    # In another process the script is a module, as its docstring shows.
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{os.environ['PYTHONPATH']}"}
    given = ["plugins=[own_mixer]", "model=gated_mean", "model.dim=0", f"task.path={text_file}"]
    command = [sys.executable, "-m", "seqzoo", "train", *given]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "model.dim=0: give a whole number from 1 up" in refused.stderr
    environment["SEQZOO_PLUGINS"] = "own_mixer"  # it imports seqzoo's operations
    command = [sys.executable, "-m", "seqzoo", "info", "model=gated_mean"]
    described = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert described.returncode == 0, described.stderr


def test_stream_any_length(script: Script, text_file: Path) -> None:
    seqzoo.train("model=gru", f"task.path={text_file}", *SMALL, quiet=True)
    printed = script("stream_any_length.py", "run", text_file, "--piece=1000")
    rows = [line.replace(",", "").split() for line in printed.splitlines()[1:]]
    assert [int(row[0]) for row in rows] == list(range(1000, 40_001, 1000))
    assert {int(row[2]) for row in rows} == {64}  # 16 numbers of 4 bytes
    in_pieces = float(rows[-1][1])
    whole = script("stream_any_length.py", "run", text_file, "--piece=100000").splitlines()[1]
    assert float(whole.split()[1]) == pytest.approx(in_pieces, abs=1e-3)


def test_cache_curve(script: Script, place: Path, text_file: Path) -> None:
    keys = [f"task.path={text_file}", *SMALL[:-1], "task.seq_len=256"]
    for model in ("transformer", "gru"):
        seqzoo.train(f"model={model}", *keys, f"hydra.run.dir={model}", quiet=True)
    printed = script(
        "../scripts/cache_curve.py", "transformer", "gru", "--chars=64", "--out=cache.svg"
    )
    assert "everything kept: " in printed and "| gru " in printed
    assert (place / "cache.svg").stat().st_size


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook(place: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    from nbclient import NotebookClient

    text = (EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8")
    limit = "trainer.max_seconds={SECONDS}"
    assert limit in text
    notebook = nbformat.reads(text.replace(limit, "trainer.max_steps=30"), as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(place)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.get("text", "") for output in outputs)
    assert "The " in printed and "transformer" in printed
