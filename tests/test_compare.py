"""Training runs compared."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from calls import status
from seqzoo.analysis.compare import runs, write
from seqzoo.analysis.compare.runs import TrainingRun
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory

SMALL = [
    "task.seq_len=16",
    "task.batch_size=2",
    "task.sample_tokens=5",
    "model.dim=16",
    "model.n_layers=1",
    "trainer.max_steps=4",
    "trainer.eval_every=2",
    "trainer.device=cpu",
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A folder of four runs: two models at two lengths."""
    folder = tmp_path_factory.mktemp("sweep")
    keys = ["task.seq_len=8,16", f"task.path={text_file}", f"hydra.sweep.dir={folder}"]
    assert status("train", "-m", "model=gru,transformer", *keys, *SMALL[1:]) == 0
    return folder


def load(*folders: Path) -> list[TrainingRun]:
    return runs.load(RunDirectory.find(list(folders), "metrics.jsonl"))


def test_names_tell_runs_apart(sweep: Path) -> None:
    found = load(sweep)
    assert [run.name for run in found] == [
        f"{model} seq_len={T}" for model in ("gru", "transformer") for T in (8, 16)
    ]
    assert {"model.name", "task.seq_len"} <= set(runs.differing_keys(found))


def test_flops_are_tokens_times_what_one_takes(sweep: Path) -> None:
    short, long = load(sweep)[2:]
    assert short.name == "transformer seq_len=8"
    assert long.flops_per_token > short.flops_per_token > 0  # attention reads what came before
    (tokens, _), (flops, _) = (short.curve("val/loss", axis)[-1] for axis in ("tokens", "flops"))
    assert flops == pytest.approx(tokens * short.flops_per_token)


def test_compare_command(sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert status("compare", sweep, "--out", tmp_path / "out") == 0
    assert "gru seq_len=8" in capfd.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"compare.{kind}" for kind in ("csv", "json", "md", "png", "svg")} | {
        "report.html"
    }
    with (tmp_path / "out/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["val/loss"]) for row in rows]
    assert len(rows) == 4 and losses == sorted(losses)
    for row in rows:
        summary = json.loads((Path(row["folder"]) / "summary.json").read_text())
        assert float(row["val/loss"]) == summary["val/loss"]


def test_no_two_runs_have_one_name(sweep: Path, tmp_path: Path) -> None:
    """Copies of one run are named by their folders; so are runs that differ in many keys."""
    first = RunDirectory.find([sweep], "metrics.jsonl")[0].path
    folders = [tmp_path / above / "0" for above in "ab"]
    for folder in folders:
        shutil.copytree(first, folder)
    assert [run.name for run in load(*folders)] == ["gru (a/0)", "gru (b/0)"]
    twice = RunDirectory.find([*folders, tmp_path / "a/../b"], "metrics.jsonl")
    assert [run.path for run in twice] == folders
    changed = folders[1] / "config.yaml"
    text = changed.read_text()
    for key in ("val_max_chars", "val_fraction", "lr", "weight_decay", "beta1", "log_every"):
        text = re.sub(rf"(?m)^  {key}: .*$", f"  {key}: 0.5", text)
    changed.write_text(text)
    assert [run.name for run in load(*folders)] == ["gru (a/0)", "gru (b/0)"]
    changed.write_text(
        re.sub(r"(?m)^  lr: .*$", "  lr: 0.5", (folders[0] / "config.yaml").read_text())
    )
    assert [run.name for run in load(*folders)][1] == "gru lr=0.5"


def test_the_better_run_comes_first(tmp_path: Path) -> None:
    found = []
    for name, value in (("lstm", 10.0), ("gru", 20.0)):
        line = {"step": 1, "tokens": 5, "seconds": 1.0, "test/bleu_by_words/06-10": value}
        found.append(
            TrainingRun(
                folder=tmp_path / name,
                name=name,
                keys={},
                metrics=[line | {"test/bleu": value, "val/loss": value}],
                summary=line | {"test/bleu": value, "test/bleu_by_words/31-": value / 2},
                flops_per_token=1.0,
            )
        )
    scores = write.by_length(found)
    assert scores is not None
    assert scores.metric == "test/bleu" and scores.bins == ["06-10", "31-"]
    assert scores.table().rows == [["lstm", "10.0", "5.00"], ["gru", "20.0", "10.0"]]
    for metric, best in {
        "test/bleu": "gru",
        "test/bleu_by_words/06-10": "gru",
        "val/loss": "lstm",
    }.items():
        write.write(found, metric, tmp_path / "out")
        written = json.loads((tmp_path / "out/compare.json").read_text())
        assert written["runs"][0]["run"] == best, metric
    assert (tmp_path / "out/lengths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["missing"], "missing: no run in it"), (["--metric", "val/los"], "did you mean 'val/loss'?")],
)
def test_refusals(
    sweep: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = arguments if arguments[0] == "missing" else [str(sweep), *arguments]
    assert status("compare", *given) == 2 and message in capfd.readouterr().err


def test_runs_that_failed_at_once(tmp_path: Path) -> None:
    """They have no metrics: the message names them, not a metric that nobody asked for."""
    failed = [
        TrainingRun(tmp_path / name, name, {}, [], {"status": "failed"}, 1.0) for name in "ab"
    ]
    with pytest.raises(UserError, match=r"/a \(failed\), .*/b \(failed\): nothing measured yet"):
        runs.pick_metric(failed, None)


def test_a_key_that_only_some_runs_have(tmp_path: Path) -> None:
    """Two runs differ in a key of a hook that a third run of the model has not."""
    keys = ({"model.name": "gru", "hook.stop.patience": 1}, {"model.name": "gru"})
    keys = (*keys, {"model.name": "gru", "hook.stop.patience": 2, "optim.name": "muon"})
    made = [runs.TrainingRun(tmp_path / str(i), "gru", k, [], {}, 1.0) for i, k in enumerate(keys)]
    assert [runs._name(run, made) for run in made] == ["gru patience=1", "gru", "gru patience=2"]
