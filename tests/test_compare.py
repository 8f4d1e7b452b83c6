"""Training runs compared."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from calls import status
from seqzoo.analysis.compare import fair, figures, runs, write
from seqzoo.analysis.compare.groups import Group, best_first, difference, grouped, mean_curve
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
    found = runs.load(RunDirectory.find(list(folders), "metrics.jsonl"))
    grouped(found)  # names them
    return found


def made(
    folder: Path, name: str = "gru", seed: int = 1, value: float = 1.0, **other: object
) -> TrainingRun:
    """A finished run of one evaluation."""
    line = {"step": 1, "tokens": 5, "seconds": 1.0, "val/loss": value, "val/bpc": 2 * value}
    summary = {**line, "status": "finished"}
    keys = {"model.name": name, "trainer.seed": seed, "task.name": "charlm"}
    keys |= {"task.tokenizer": "char"}
    run = TrainingRun(folder / f"{name}{seed}", name, keys, [line], summary, 1.0)
    for attribute, changed in other.items():
        getattr(run, attribute).update(changed)
    return run


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
    out = capfd.readouterr().out
    assert "gru seq_len=8" in out
    assert "tensorboard: mean curves" in out and f"dashboard {tmp_path / 'out'}\n" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"compare.{kind}" for kind in ("csv", "json", "md", "png", "svg")} | {
        *("report.html", "curves.csv", "tensorboard")
    }
    with (tmp_path / "out/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["val/stream_loss"]) for row in rows]
    assert len(rows) == 4 and losses == sorted(losses)
    for row in rows:
        summary = json.loads((Path(row["folder"]) / "summary.json").read_text())
        assert float(row["val/stream_loss"]) == summary["val/stream_loss"]
    with (tmp_path / "out/curves.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [point["step"] for point in points] == ["2", "4"] * 4
    assert float(points[1]["flops"]) == float(rows[0]["flops"])


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
                summary=line
                | {"status": "finished", "test/bleu": value, "test/bleu_by_words/31-": value / 2},
                flops_per_token=1.0,
            )
        )
    scores = figures.by_length(found)
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
        fair.pick_metric(failed, None)


def test_a_key_that_only_some_runs_have(tmp_path: Path) -> None:
    """Two runs differ in a key of a hook that a third run of the model has not."""
    keys = ({"model.name": "gru", "hook.stop.patience": 1}, {"model.name": "gru"})
    keys = (*keys, {"model.name": "gru", "hook.stop.patience": 2, "optim.name": "muon"})
    three = [runs.TrainingRun(tmp_path / str(i), "gru", k, [], {}, 1.0) for i, k in enumerate(keys)]
    assert [runs.name_by_keys(run, three) for run in three] == [
        "gru patience=1",
        "gru",
        "gru patience=2",
    ]


# ---- seeds


def test_runs_of_several_seeds_are_one_row(tmp_path: Path) -> None:
    """Their mean and standard deviation, worked out by hand; a second run of a seed is no third
    seed."""
    found = [
        *(made(tmp_path, "gru", seed, value) for seed, value in enumerate((1.0, 1.2, 1.4))),
        *(made(tmp_path, "lstm", seed, value) for seed, value in enumerate((0.9, 1.0))),
        made(tmp_path / "again", "lstm", 1, 3.0),
    ]
    groups = grouped(found)
    assert [group.name for group in groups] == [*("gru", "lstm (lstm0)", "lstm (lstm1)")]
    assert groups[0].mean("val/loss") == pytest.approx(1.2)
    assert groups[0].deviation("val/loss") == pytest.approx(0.2)
    assert groups[2].deviation("val/loss") is None
    assert found[1].name == "gru seed=1" and found[5].name == "lstm (lstm1)"
    ordered = [group.name.split()[0] for group in best_first(groups, "val/loss")]
    assert ordered == ["lstm", "gru", "lstm"]


def test_paired_difference(tmp_path: Path) -> None:
    """Seed by seed: 0.1, 0.2 and 0.3 more, so 0.2 with a half width of 4.30 * 0.1 / sqrt(3). Seeds
    that only one of the two has are left out."""
    ours = Group("a", [made(tmp_path, "a", s, v) for s, v in ((1, 1.0), (2, 5.0), (3, 9.0))])
    theirs = [made(tmp_path, "b", s, v) for s, v in ((1, 1.1), (2, 5.2), (3, 9.3), (4, 70.0))]
    found = difference(ours, Group("b", theirs), "val/loss")
    assert found is not None and found.n == 3 and not found.apart
    assert found.mean == pytest.approx(0.2)
    assert found.high - found.mean == pytest.approx(4.30 * 0.1 / 3**0.5)
    assert difference(ours, Group("b", theirs[2:]), "val/loss") is None
    same = [made(tmp_path, "b", s, v + 0.5) for s, v in ((1, 1.0), (2, 5.0), (3, 9.01))]
    closer = difference(ours, Group("b", same), "val/loss")
    assert closer is not None and closer.apart


def test_band_of_curves_of_unlike_points(tmp_path: Path) -> None:
    """Two lines, y = x and y = 3 x, seen at different steps: the mean is 2 x wherever both are."""
    first, second = made(tmp_path, seed=1), made(tmp_path, seed=2)
    first.metrics = [{"step": x, "val/loss": 1.0 * x} for x in (0, 4, 8)]
    second.metrics = [{"step": x, "val/loss": 3.0 * x} for x in (2, 5, 9)]
    x, mean, deviation = mean_curve(Group("gru", [first, second]), "val/loss", "step")
    assert x.tolist() == [2, 4, 5, 8] and mean == pytest.approx(2 * x)
    assert deviation == pytest.approx(2**0.5 * x)
    first.metrics, second.metrics = first.metrics[:1], second.metrics[2:]  # at 0 and at 9
    x, mean, deviation = mean_curve(Group("gru", [first, second]), "val/loss", "step")
    assert x.tolist() == [4.5] and mean == pytest.approx([13.5])
    assert deviation == pytest.approx([27 / 2**0.5])


def test_tensorboard_has_the_mean_and_the_band(tmp_path: Path) -> None:
    """A second call adds no second point to a step, and leaves the files of others alone."""
    several = [made(tmp_path, "gru", seed, value) for seed, value in ((1, 1.0), (2, 3.0))]
    alone = made(tmp_path, "lstm", 1, 2.0, keys={"task.path": "../../text"})
    other = made(tmp_path, "lstm", 1, 5.0, keys={"task.path": "/text"})
    board = tmp_path / "out/tensorboard"
    board.mkdir(parents=True)
    (board / "events.out.tfevents.1.other").write_text("")
    for _ in range(2):
        write.write([*several, alone, other], "val/loss", tmp_path / "out")
    curves = {
        str(run.relative_to(board)): {
            tag: [(event.step, event.value) for event in found.Scalars(tag)]
            for tag in found.Tags()["scalars"]
        }
        for run in {events.parent for events in board.rglob("events.*.compare")}
        if (found := EventAccumulator(str(run)).Reload())
    }
    mean, sd = 2.0, 2**0.5
    assert curves.pop("gru") == {
        "compare/val/loss": [(1, mean)],
        "compare_band/val/loss": [(1, mean)],
        "compare_band_low/val/loss": [(1, pytest.approx(mean - sd))],
        "compare_band_high/val/loss": [(1, pytest.approx(mean + sd))],
    }
    assert curves == {
        "lstm path=../text": {"compare/val/loss": [(1, 2.0)]},
        "lstm path=/text": {"compare/val/loss": [(1, 5.0)]},
        ".": {},
    }
    assert (board / "events.out.tfevents.1.other").exists()
    (layout,) = EventAccumulator(str(board)).Reload().Tensors("custom_scalars__config__")
    (text,) = layout.tensor_proto.string_val
    (category,) = layout_pb2.Layout.FromString(text).category
    (lines, bands) = category.chart
    assert lines.multiline.tag == [r"compare/val/loss$"]
    (band,) = bands.margin.series
    assert (band.value, band.lower, band.upper) == (
        *("compare_band/val/loss", "compare_band_low/val/loss", "compare_band_high/val/loss"),
    )


def test_a_sweep_of_seeds_ends_in_a_table(
    tmp_path: Path, text_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Best first; and the command that it names makes the page of the same runs."""
    keys = ["model=gru,lstm", "trainer.seed=1..3", f"task.path={text_file}"]
    assert status("train", "-m", *keys, f"hydra.sweep.dir={tmp_path / 's w'}", *SMALL) == 0
    out = capfd.readouterr().out
    results, paired, _ = out[out.rindex("| run ") :].split("\n\n")
    head, _, *rows = results.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    names = [cell.strip() for cell in head.strip("|").split("|")]
    assert names[:4] == ["run", "val/stream_loss", "sd", "seeds"]
    assert sorted(row[0] for row in cells) == ["gru", "lstm"]
    assert [row[3] for row in cells] == ["3", "3"] and cells[0][1] <= cells[1][1]
    head, _, row = paired.splitlines()
    assert head.startswith(f"| val/stream_loss less that of {cells[0][0]} ")
    assert row.startswith(f"| {cells[1][0]} ") and " 3 " in row
    assert row.strip("| ").rpartition("| ")[2] in ("apart", "not told apart")
    assert f"compare '{tmp_path / 's w'}'" in out
    assert status("compare", tmp_path / "s w", "--out", tmp_path / "out") == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "paired t test" in page and f"less that of {cells[0][0]}" in page
    (tmp_path / "s w/5_charlm_lstm/summary.json").unlink()
    assert status("compare", tmp_path / "s w", "--out", tmp_path / "out") == 0
    assert "2 finished, 1 running or killed" in (tmp_path / "out/compare.md").read_text()


def test_the_family_keeps_its_colour(tmp_path: Path) -> None:
    from seqzoo.report.figures import colours

    several = grouped([made(tmp_path, name, seed) for name in ("gru", "lstm") for seed in (1, 2)])
    assert figures.colours(several) == colours(["gru", "lstm"])


# ---- what is fair


def test_no_rank_across_data(
    sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A table for each data set, the longer part of the same text that is held out too."""
    other = ["task.val_fraction=0.2", f"task.path={Path(__file__)}", f"hydra.run.dir={tmp_path}/b"]
    assert status("train", "model=gru", *other, *SMALL) == 0
    capfd.readouterr()
    assert status("compare", sweep, tmp_path / "b", "--out", tmp_path / "out") == 0
    out = capfd.readouterr().out
    assert "2 different data or tasks, across which no metric ranks them" in out
    assert out.count("| run ") == 3  # two tables of results, one of differences
    assert len(json.loads((tmp_path / "out/1/compare.json").read_text())["runs"]) == 4
    assert len(json.loads((tmp_path / "out/2/compare.json").read_text())["runs"]) == 1


def test_bits_a_character_across_tokenizers(
    tmp_path: Path, text_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = [f"task.path={text_file}", "task.tokenizer=char,byte,bpe", "task.vocab_size=300"]
    sweep = tmp_path / "sweep"
    assert status("train", "-m", "model=gru", *keys, f"hydra.sweep.dir={sweep}", *SMALL) == 0
    out = capfd.readouterr().out
    assert "ranked by val/stream_bpc, bits a character" in out
    assert status("compare", sweep, "--metric", "val/loss") == 2
    error = capfd.readouterr().err
    assert "3 tokenizers (char, byte, bpe of 300): give --metric val/stream_bpc" in error


def test_an_unfinished_run_is_not_ranked(tmp_path: Path) -> None:
    """It comes last, even where its last value is the best, and counts in no mean."""
    better = made(tmp_path, "lstm", 1, 0.1, summary={"status": "interrupted"})
    failed = made(tmp_path, "rnn", 1, 0.1, summary={"status": "failed"})
    failed.metrics = []
    found = [better, failed, *(made(tmp_path, "gru", seed, seed) for seed in (1, 2, 3))]
    found.append(made(tmp_path, "gru", 4, 0.0, summary={"status": "failed"}))
    text = write.write(found, "val/loss", tmp_path / "out")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows[2:5] == ["gru", "lstm", "rnn"]
    assert "interrupted: not ranked" in text and "3 finished, 1 failed" in text
    assert grouped(found)[2].name == "gru"
    assert grouped(found)[2].mean("val/loss") == 2
    assert (tmp_path / "out/compare.png").exists()
