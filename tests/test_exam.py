"""`seqzoo exam`: what is planned, what cells give, what is said of it; a small one from end to
end."""

import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from calls import assert_refused, status
from seqzoo import tasks
from seqzoo.analysis.compare import exams
from seqzoo.cli.checks import check_config
from seqzoo.cli.commands.exam import _digest, _names
from seqzoo.cli.compose import compose, parse
from seqzoo.config import files
from seqzoo.config.files import VARIABLE
from seqzoo.errors import UserError
from seqzoo.exam import plan, results, runner, words, write
from seqzoo.exam.cells import Cells
from seqzoo.exam.plan import Cell
from seqzoo.models.zoo import FAMILIES
from seqzoo.runs.directory import RunDirectory


def made(**exam: Any) -> plan.Plan:
    models = exam.pop("models", ["lstm", "gla"])
    return plan.make({"models": models, "model": exam.pop("model", {}), "exam": exam})


# ---- the plan


def test_every_ability_has_a_file_that_is_whole() -> None:
    for name in files.names("ability"):
        assert plan.ability(name).columns and files.comments("ability", name)[0]


def test_what_guessing_scores_is_the_tasks_own_chance() -> None:
    compared = 0
    for one in map(plan.ability, files.names("ability")):
        task = compose(parse(one.train))[0]["task"]
        chance = getattr(tasks.prepare(task), "chance", None)
        if chance is not None:
            assert one.chance == pytest.approx(100 * chance, abs=0.05)
            compared += 1
    assert compared >= 3


def test_every_model_can_be_asked_every_ability() -> None:
    """A model's section and an ability's other sections are composed once each, and then joined:
    Hydra would take a minute for all pairs."""
    one = made(models="all", model={"n_layers": 2}, abilities=files.names("ability"))

    def composed(model: str, ability: str) -> dict[str, Any]:
        config = compose(parse(one.overrides(Cell(model, ability, 0.001, 1))))[0]
        check_config(config)
        return config

    sections = {model: composed(model, "recall")["model"] for model in one.models}
    for ability in one.abilities:
        config = composed("lstm", ability.name)
        for section in sections.values():
            check_config({**config, "model": section})
    assert set(FAMILIES) <= set(sections)


def test_a_hybrid_has_its_whole_pattern() -> None:
    one = made(models=["griffin", "lstm"], model={"n_layers": 2})
    assert [keys["n_layers"] for keys in one.models.values()] == [3, 2]


def test_what_a_cell_is_given() -> None:
    one = made(abilities=["recall"], steps=7, parameters=5000, model={"n_heads": 2})
    given = one.overrides(Cell("gla", "recall", 0.004, 3))
    assert {"model=gla", "task=mqar", "model.n_heads=2", "model.parameters=5000"} <= set(given)
    assert {"trainer.max_steps=14", "optim.lr=0.004", "trainer.seed=3"} <= set(given)
    assert "model.n_heads=2" not in one.overrides(Cell("lstm", "recall", 0.004, 3))
    timed = made(abilities=["language"], language_seconds=9, text=__file__, device="cpu")
    given = timed.overrides(Cell("lstm", "language", 0.004, 1))
    assert {f"task.path='{__file__}'", "trainer.max_seconds=9", "trainer.device=cpu"} <= set(given)
    for keys, limit in (({"steps": None}, "max_steps"), ({"seconds": None}, "max_seconds")):
        given = made(abilities=["parity"], **keys).overrides(Cell("lstm", "parity", 0.004, 1))
        assert f"trainer.{limit}=null" in given or f"trainer.{limit}" not in str(given)


@pytest.mark.parametrize(
    ("keys", "needed"),
    [
        ({"models": ["lstmm"]}, ("model=lstmm", "'lstm'")),
        ({"models": []}, ("models=[]", "a list")),
        ({"model": {"n_hads": 2}}, ("model.n_hads", "'n_heads'")),
        ({"abilities": ["recal"]}, ("exam.abilities", "'recall'")),
        ({"abilities": []}, ("exam.abilities=[]", "at least one")),
        ({"rates": []}, ("exam.rates=[]", "at least one")),
        ({"rates": [0.01, 0.01]}, ("exam.rates=[0.01,0.01]", "each once")),
        ({"abilities": ["recall", "recall"]}, ("exam.abilities=[recall,recall]", "each once")),
        ({"model": {"parameters": 9}}, ("model.parameters=9", "exam.parameters=9")),
        ({"rates": [-1.0]}, ("exam.rates=[-1.0]", "a list of learning rates")),
        ({"seeds": 0}, ("exam.seeds=0", "1 up")),
        ({"steps": None, "seconds": None}, ("exam.steps=null", "at least one")),
        ({"device": "gpu"}, ("exam.device=gpu", "auto")),
        ({"sedes": 1}, ("exam.sedes", "'seeds'")),
    ],
)
def test_what_cannot_be_planned_is_refused(keys: dict[str, Any], needed: tuple[str, ...]) -> None:
    assert_refused(lambda: made(**keys), *needed)


# ---- from cells to results, by summaries that are written here


def write_summary(folder: Path, cell: Cell, metrics: dict[str, float]) -> None:
    folder.mkdir(parents=True)
    directory = RunDirectory(folder)
    sections = {"model": {"name": cell.model, "dim": 8}, "task": {"name": "mqar"}, "trainer": {}}
    directory.write_config(sections)
    directory.write_summary({**metrics, "status": "finished", "parameters": 99, "steps": 5})


@pytest.fixture
def finished(tmp_path: Path) -> Cells:
    """Cells that were all measured before: LSTM is better with the second rate, GLA with the
    first; one rate of GLA's failed in copying."""
    one = made(abilities=["recall", "copying"], rates=[0.001, 0.01], seeds=2)
    scores = {
        ("lstm", 0.001): (20.0, 40.0),
        ("lstm", 0.01): (30.0, 50.0),
        ("gla", 0.001): (99.5, 60.0),
        ("gla", 0.01): (80.0, None),
    }
    for ability in one.abilities:
        for (model, rate), pair in scores.items():
            for seed in (1, 2):
                cell = Cell(model, ability.name, rate, seed)
                value = pair[ability.name == "copying"]
                metrics = {"val/accuracy": (value or 0) + seed / 10, "test/accuracy": 10.0 * seed}
                sizes = (("val", 8), ("test", 16))
                metrics |= {f"{s}/{ability.curve}/{n:05}": 50.0 + seed for s, n in sizes}
                metrics["state_bytes"] = 64
                if value is not None:
                    write_summary(tmp_path / name(cell), cell, metrics)
    lines: list[str] = []
    cells = Cells(one, tmp_path, name, lines.append)
    cells._start = lambda *_: pytest.fail("started")  # type: ignore[method-assign, assignment]
    return cells


def name(cell: Cell) -> str:
    return f"{cell.ability}/{cell.model}_{cell.rate}_{cell.seed}"


class Ended:
    """A process that has ended."""

    def __init__(self, returncode: int = 1) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (lambda *_: Ended(), "it left no word"),
        (lambda *_: Ended(-9), "killed by signal 9, perhaps for its memory: give exam.workers=1"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_why_a_cell_failed(finished: Cells, start: Any, reason: str) -> None:
    def started(*_: Any) -> Any:
        if isinstance(start, OSError):
            raise start
        return start()

    finished._start = started  # type: ignore[method-assign]
    finished.measure()
    answer = finished.answers[Cell("gla", "copying", 0.01, 1)]
    assert (answer.status, answer.note) == ("failed", reason)


def test_what_was_finished_is_read_after_ctrl_c(finished: Cells) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    finished._run = interrupted  # type: ignore[method-assign]
    finished.measure()
    assert finished.stopped and len(finished.answers) == 2 * (2 * 2 + 2) - 1  # one had failed


def test_scores_are_of_the_best_rate_with_intervals(finished: Cells) -> None:
    finished._start = lambda *_: Ended()  # type: ignore[method-assign, assignment, return-value]
    finished.measure()
    rows = {(row["model"], row["ability"]): row for row in results.scores(finished)}
    assert rows["lstm", "recall"]["rate"] == 0.01 and rows["gla", "recall"]["rate"] == 0.001
    row = rows["gla", "recall"]
    assert row["mean"] == pytest.approx(99.65) and row["n"] == 2
    half = 12.71 * 0.1 / 2  # Student's t with one degree of freedom; two values 0.1 apart
    assert row["low"] == pytest.approx(99.65 - half, abs=1e-3) and row["high"] == 100
    assert rows["gla", "copying, longer"]["values"] == {1: 10, 2: 20}
    assert row["state_bytes"] == 64
    failed = [cell for cell, answer in finished.answers.items() if answer.status == "failed"]
    assert failed == [Cell("gla", "copying", 0.01, 1)]
    curve = next(iter(results.curves(finished)))
    assert [point[:2] for point in curve["points"]] == [(8, 51.5), (16, 51.5)]
    assert curve["axis"] == "pairs" and curve["trained"] == 8
    assert curve["points"][0][2:] == pytest.approx((51.5 - 12.71 / 2, 51.5 + 12.71 / 2), abs=1e-3)


def test_the_bench_has_the_keys_of_each_model(tmp_path: Path) -> None:
    one = made(models=["lstm", "griffin", "gla"], model={"n_layers": 2})
    costs = runner._Costs(one, tmp_path, "", "a machine")
    depths = {name: keys["n_layers"] for name, keys in costs.plan.models.items()}
    assert depths == {"lstm": 2, "griffin": 3, "gla": 2}


def test_a_bench_that_is_not_whole_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {"points": [{"status": "ok"}, {"status": "out of memory"}]}
    monkeypatch.setattr("seqzoo.bench.runner.run", lambda *_: found)
    monkeypatch.setattr(
        "seqzoo.bench.write.write",
        lambda bench, folder: (folder / "bench.json").write_text(json.dumps(bench)),
    )
    costs = runner._Costs(made(speed_rounds=3), tmp_path, "", "a machine")
    for rounds, state, kept in ((3, "out of memory", False), (2, "ok", False), (3, "ok", True)):
        found["rounds_done"], found["points"][1]["status"] = rounds, state
        costs.measure()
        assert (costs.kept() == found) is kept
    for rounds, machine in ((2, "a machine"), (3, "another")):
        assert runner._Costs(made(speed_rounds=rounds), tmp_path, "", machine).kept() is None


def test_a_finished_cell_is_not_run_again(finished: Cells) -> None:
    finished.plan = made(abilities=["recall"], rates=[0.001, 0.01], seeds=2)
    finished.measure()  # would fail in `_start`
    assert len(finished.answers) == 2 * 2 + 2


def test_a_cell_without_its_score_has_failed(finished: Cells) -> None:
    cell = Cell("lstm", "recall", 0.001, 1)
    directory = RunDirectory(finished.folder / name(cell))
    directory.write_summary({"status": "finished", "val/loss": 1.0})
    finished._run(finished.plan.abilities[0], [cell])
    assert finished.answers[cell].status == "failed"
    assert "no val/accuracy, the score of recall" in finished.answers[cell].note


def test_the_pareto_front() -> None:
    points = {"cheap": (3.0, 1.0), "good": (1.0, 9.0), "beaten": (3.0, 2.0), "middle": (2.0, 5.0)}
    assert results.front(points) == ["cheap", "middle", "good"]
    twins = {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    assert results.front(twins) == ["a", "b"]


def row(
    model: str, ability: str, *values: float, state: int | None = None, metric: str = ""
) -> dict[str, Any]:
    """A row of scores, a value a seed."""
    metric = metric or ("val/loss" if ability == "language" else "val/accuracy")
    return {
        **{"model": model, "ability": ability, "metric": metric, "state_bytes": state},
        "parameters": 120 if model == "gla" else 100,
        "unit": "" if "loss" in metric else "%",
        "values": dict(enumerate(values, 1)),
        **results.interval(values, percent="loss" not in metric),
    }


CELL = {
    "ability": "recall",
    "status": "finished",
    "steps_asked": 80,
    "data_sha256": "a",
    "versions": {"torch": "2", "python": "3"},
    "device": "cpu",
    "threads": 1,
}


def test_sentences_are_made_from_the_numbers() -> None:
    found = {
        "models": {"lstm": ["lstm"] * 2, "gla": ["gla"] * 2, "mix": ["gla", "lstm"]},
        "abilities": [{"name": "recall", "chance": 39.0}, {"name": "parity", "chance": 50.0}],
        "scores": [
            row("lstm", "language", 1.49, 1.51),
            row("gla", "language", 1.59, 1.61),
            row("mix", "language", 1.485, 1.504),
            row("lstm", "recall", 40.0, state=1024),
            row("gla", "recall", 99.2, state=2048),
            row("mix", "recall", 99.9, state=3072),
            row("lstm", "recall, longer", 30.0, 30.2),
            row("gla", "recall, longer", 60.0, 60.1),
            row("mix", "recall, longer", 90.0, 90.1),
            row("lstm", "parity", 51.0, state=1024),
            row("gla", "parity", 50.0, state=2048),
        ],
        "costs": [
            {"model": "lstm", "decode_milliseconds": 1.0, "notes": []},
            {"model": "gla", "decode_milliseconds": 2.0, "notes": ["train: out of memory"]},
            {"model": "mix", "decode_milliseconds": 3.0, "notes": []},
        ],
        "costs_failed": None,
        "stopped": True,
        "planned": 9,
        "exam": {"parameters": 100},
        "cells": [
            {"model": "gla", "ability": "copying", "status": "failed"},
            {"model": "gla", "ability": "recall", "status": "failed"},
            {**CELL, "model": "gla", "steps": 60},
            {
                **CELL,
                "model": "mix",
                "steps": 80,
                "versions": {"torch": "1", "python": "3"},
                "data_sha256": "b",
                "threads": 2,
            },
        ],
    }
    said = "\n".join(words.sentences(found))
    assert "Language: mix is best with 1.494 (1.374 to 1.615, n 2)" in said
    assert "over the seeds, the difference from lstm may be chance." in said
    assert "Recall beyond the trained lengths: mix is best with 90.0 %" in said
    assert "apart from all others; next is gla" in said
    assert (
        "Recall: solved (99 % or more) by mix 99.9 %, state 3.00 KiB and "
        "gla 99.2 %, state 2.00 KiB." in said
    )
    assert (
        "front of recall against state, the cheapest first: gla 99.2 %, 2.00 KiB; "
        "mix 99.9 %, 3.00 KiB." in said
    )
    assert "front of recall against decoding, the cheapest first: gla 99.2 %," in said
    assert "Guessing scores 39 % in recall and 50 % in parity." in said
    assert "Parity: no model is better than guessing; lstm is best with 51.0 %." in said
    assert "front of parity" not in said
    assert "of language against state" not in said  # there are no bytes for it
    assert (
        "mix is better than each of its parents, gla and lstm, in recall, longer; its mean is "
        "better in language and recall, where seeds are too few or differ." in said
    )
    assert "Failed, and therefore not in the table: copying of gla." in said
    assert "A rate or a seed failed, and the table has the others: recall of gla." in said
    assert "Of speed and memory there is not all of gla (train: out of memory)." in said
    assert "ended recall before all of its 80 steps for gla (60): with more" in said
    assert "The data of recall changed between cells" in said
    assert "More than 10% off the 100 parameters asked: gla (120)." in said
    assert "Cells ran with different versions: torch 1, torch 2." in said
    assert "Cells of recall ran with different threads: 1, 2." in said
    assert said.startswith("Stopped after 4 of 9 cells")


def test_equals_are_equally_good_and_one_seed_is_not_apart() -> None:
    rows = [row("lstm", "recall", 100.0, 100.0), row("gla", "recall", 100.0, 100.0)]
    rows += [row("mix", "recall", 90.0)]
    found = {
        "models": dict.fromkeys(("lstm", "gla", "mix"), []),
        "abilities": [],
        "scores": rows,
    }
    said = words._ranking(found, "recall")
    assert words.digits(99.99, "%") == "99.99" and words.digits(100.0, "%") == "100.0"
    assert said == (
        "Recall: lstm and gla are equally good with 100.0 % (100.0 to 100.0, n 2); next is mix "
        "with 90.0 %."
    )


def test_apart_is_said_of_the_better_side_alone() -> None:
    """The first has the better mean by a seed that the other lacks; over the shared ones it is
    worse."""
    rows = [row("lstm", "recall", 80.0, 80.0, 100.0), row("gla", "recall", 85.0, 85.1)]
    found = {"models": dict.fromkeys(("lstm", "gla"), []), "abilities": [], "scores": rows}
    said = words._ranking(found, "recall")
    assert "lstm is best" in said and "the difference from gla may be chance" in said


def test_an_exam_without_a_score_leaves_no_old_page(tmp_path: Path) -> None:
    folder = tmp_path / "exam"
    assert write.write({"scores": [], "models": {}, "costs": []}, folder).startswith("nothing")
    (folder / "report.html").touch()
    (folder / "length.png").touch()
    write.write({"scores": [], "models": {}, "costs": []}, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["exam.csv", "exam.json"]


def test_a_score_below_zero_has_its_whole_interval() -> None:
    assert results.interval([-3.0, 1.0], percent=True)["low"] < -3
    assert results.interval([1.0, 3.0], percent=True)["low"] == 0


# ---- the whole


def test_an_exam_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two models, two abilities, three seeds; then again, where only the new model is run."""
    folder = tmp_path / "exam"
    keys = ["exam.abilities=[recall,parity]", "exam.steps=2", "exam.parameters=4000"]
    keys += ["exam.rates=[0.01]", "exam.speed_length=16", "exam.speed_rounds=1", "model.n_layers=1"]
    keys += [f"hydra.run.dir={folder}"]
    assert status("exam", "models=[gru]", *keys) == 0
    first = capfd.readouterr().out
    assert first.count("recall  gru") == 3 and "### Scores" in first and "### Costs" in first
    assert status("exam", "models=[gru,transformer]", *keys) == 0
    again = capfd.readouterr().out
    timed = {
        model: ["s)" in line for line in again.splitlines() if f"  {model}  rate" in line]
        for model in ("gru", "transformer")
    }
    assert timed == {"gru": [False] * 6, "transformer": [True] * 6}
    found = json.loads((folder / "exam.json").read_text())
    assert len(found["cells"]) == found["planned"] == 12 and not found["stopped"]
    assert {row["model"] for row in found["costs"]} == {"gru", "transformer"}
    sizes = {
        (curve["model"], curve["ability"]): [size for size, *_ in curve["points"]]
        for curve in found["curves"]
    }
    assert sizes["gru", "recall"] == [2, 4, 8]  # pairs
    assert sizes["gru", "parity"] == [40, 64, 128, 256]  # bits
    assert "recall, longer" not in again and "parity, longer" in again
    names = {path.name for path in folder.iterdir()}
    figures = {f"{each}.{kind}" for each in ("exam", "state", "length") for kind in ("png", "svg")}
    assert figures | {"report.html", "exam.md", "exam.csv", "cells", "bench"} <= names
    assert (folder / "tensorboard/gru").is_dir()
    assert status("compare", folder, folder) == 0
    printed = capfd.readouterr().out
    assert printed.count("+0") == 6 and printed.count("1.000") == 8  # columns, costs
    events = list((folder / "tensorboard/gru").iterdir())
    assert len(events) == 1  # the second exam wrote anew
    with (folder / "exam.csv").open() as lines:
        named = {(each["model"], each["ability"]) for each in csv.DictReader(lines)}
    assert {("gru", "training"), ("gru", "state"), ("transformer", "recall")} <= named
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4 and "What the numbers say" in page and "src=" not in page


def test_a_cell_that_fails_is_said_and_the_rest_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")  # and so as it was afterwards
    (tmp_path / "more/ability").mkdir(parents=True)
    rest = "longer: null\ncurve: null\nchance: null\ntimed: false\neffort: 1\n"
    more = {"broken": "task=charlm, task.path=nowhere.txt", "wrong": "task=parity"}
    for name, train in more.items():
        score = "val/loss" if name == "broken" else "test/accuracy"
        path = tmp_path / "more/ability" / f"{name}.yaml"
        path.write_text(f"train: [{train}]\nscore: {score}\n{rest}")
    more_dir = f"--config-dir={tmp_path / 'more'}"
    assert status("exam", "models=[gru]", "exam.abilities=[wrong]", more_dir) == 2
    assert "ability wrong: score: test/accuracy: give one of val/acc" in capfd.readouterr().err
    keys = ["models=[gru]", "exam.abilities=[broken,parity]", "exam.steps=1", "exam.seeds=1"]
    keys += ["exam.parameters=4000", "exam.rates=[0.01]", "exam.speed=false"]
    keys += [f"hydra.run.dir={tmp_path / 'exam'}", more_dir]
    assert status("exam", *keys) == 1
    printed = capfd.readouterr().out
    assert (
        "broken  gru  rate 0.01, seed 1: failed: seqzoo: " in printed and "nowhere.txt" in printed
    )
    assert "parity  gru  rate 0.01, seed 1: " in printed
    assert "Failed, and therefore not in the table: broken of gru." in printed


def test_two_exams_are_compared_where_their_data_are_the_same(tmp_path: Path) -> None:
    def write(name: str, digest: str, **more: Any) -> Path:
        exam = {
            **{"machine": "here", "versions": {}, "keys": {"gla": {"n_layers": 2}}},
            "models": {"gla": []},
            "exam": dict.fromkeys(exams.SETTINGS, 1) | {"speed_length": 8},
            "cells": [{**CELL, "data_sha256": "a"}, {**CELL, "ability": "parity"}],
            "costs": [{"model": "gla", "state_bytes": 512}],
            "abilities": [{"name": "recall", "effort": 2 if name == "second" else 1}],
        }
        exam["cells"][1]["data_sha256"] = digest
        (tmp_path / name).mkdir()
        (tmp_path / name / "exam.json").write_text(json.dumps(exam | more))
        return tmp_path / name

    parity = row("gla", "parity", 50.0)
    first = write("first", "a", scores=[row("gla", "recall", 60.0, 61.0), parity])
    rows = [row("gla", "recall", 70.0, 71.2), parity, row("gla", "copying", 1.0)]
    second = write("second", "b", scores=rows, machine="there")
    said = exams.compare_exams([first, second])
    assert "They differ in machine: here; there" in said
    assert "the ability recall: {'name': 'recall', 'effort': 1}; " in said
    assert "Not compared: parity, whose data differ." in said
    assert f"Only in {second}: copying of gla." in said
    table = [line for line in said.splitlines() if line.startswith("| gla")]
    assert "recall" in table[0] and "+10.1" in table[0] and "apart" in table[0]
    assert "| equal |" in exams.compare_exams([first, first]).replace("  ", "")
    assert "512 " in said or "0.500 KiB" in said
    assert len(table) == 2
    third = write("third", "b", scores=[parity])
    with pytest.raises(UserError, match="the data of parity differ"):
        exams.compare_exams([first, third])


def test_a_changed_text_is_asked_anew(tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    names = []
    for content in ("abc", "abd"):
        text.write_text(100 * content)
        one = made(abilities=["language", "parity"], text=str(text))
        name = _names(one, _digest(str(text)))
        names.append([name(Cell("lstm", each, 0.004, 1)) for each in ("language", "parity")])
    assert names[0][0] != names[1][0] and names[0][1] == names[1][1]
    text.write_text("")
    assert_refused(lambda: _digest(str(text)), f"exam.text={text}", "empty")
    text.unlink()
    assert_refused(lambda: _digest(str(text)), f"exam.text={text}", "no such file")


def test_a_bench_that_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no room")

    monkeypatch.setattr("seqzoo.bench.runner.run", fails)
    keys = ["models=[gru]", "exam.abilities=[parity]", "exam.steps=1", "exam.seeds=1"]
    keys += ["exam.parameters=4000", "exam.rates=[0.01]", f"hydra.run.dir={tmp_path}"]
    assert status("exam", *keys) == 1
    assert "Speed and memory were not measured: no room." in capfd.readouterr().out


def test_the_orderings_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every exam of scripts/orderings.sh, up to its first cell."""
    monkeypatch.setenv(VARIABLE, "")  # and so as it was afterwards
    asked = tmp_path / "seqzoo"
    asked.write_text("#!/bin/sh\nprintf '%s\\n' \"$*\"\n")
    asked.chmod(0o755)
    environment = {**os.environ, "OUT": str(tmp_path), "SEQZOO": str(asked)}
    script = Path(__file__).parents[1] / "scripts" / "orderings.sh"
    lines = subprocess.run(
        ["bash", script], env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    plans: list[plan.Plan] = []

    def planned(one: plan.Plan, *_: Any) -> Any:
        plans.append(one)
        raise UserError("enough")

    monkeypatch.setattr("seqzoo.exam.runner.run", planned)
    assert [status(*line.split()) for line in lines] == [2] * len(lines) == [2] * len(plans)
    assert {"deltanet_beta2", "deltaproduct_1", "gla_16"} < {
        name for p in plans for name in p.models
    }
