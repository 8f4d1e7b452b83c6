"""The bench: plan, processes, statistics, measurements, files; and two benches compared."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calls import KERNELS, status
from seqzoo.analysis.compare.benches import compare_benches
from seqzoo.bench import figures, plan, results, runner, write
from seqzoo.bench.figures import PANELS
from seqzoo.bench.plan import parse_lengths
from seqzoo.config import files
from seqzoo.errors import UserError
from seqzoo.models.zoo import FAMILIES, layers
from seqzoo.report.figures import colours
from seqzoo.report.text import markdown, number

SMALL = [
    "bench.lengths=[16,32]",
    "bench.parameters=20000",
    "bench.batch_size=2",
    "bench.rounds=1",
    "bench.seconds=0.005",
    "bench.device=cpu",
    "bench.threads=1",
]


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two benches made by the command line: a, of all families in one round, in a
    process of its own; and b, of two in two rounds."""
    folder = tmp_path_factory.mktemp("benches")
    given = [*SMALL, "models=all", f"hydra.run.dir={folder}/a"]
    done = subprocess.run(
        [sys.executable, "-m", "seqzoo", "bench", *given], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    given = ["models=[lstm,transformer]", "bench.rounds=2", f"hydra.run.dir={folder}/b"]
    assert status("bench", *SMALL, *given) == 0
    return folder


@pytest.fixture(scope="module")
def bench(benches: Path) -> dict[str, Any]:
    return json.loads((benches / "a/bench.json").read_text())


# ---- the plan


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        ("64..512", [64, 128, 256, 512]),
        ("64..500", [64, 128, 256, 500]),
        ("3..3", [3]),
        ([9, 4, 9], [4, 9]),
        (7, [7]),
    ],
)
def test_lengths(given: object, lengths: list[int]) -> None:
    assert parse_lengths(given) == lengths  # type: ignore[arg-type]


def make(**keys: object) -> plan.Plan:
    """A plan of the default settings with some in place of them."""
    defaults = files.defaults("bench", "default")
    return plan.make({"models": ["lstm", "rnn"], "model": {}, "bench": {**defaults, **keys}})


@pytest.mark.parametrize("given", ["64-512", "512..64", "0..4", [], [0], [1.5], "", None, True])
def test_lengths_refused(given: object) -> None:
    with pytest.raises(UserError, match="bench.lengths=.*give FIRST..LAST"):
        make(lengths=given)


@pytest.mark.parametrize(
    ("key", "value"),
    [("modes", []), ("modes", ["trian"]), ("rounds", 0), ("rounds", 1.5), ("seconds", 0)]
    + [("dtype", "float16"), ("threads", True), ("tokens", 4096), ("round", 2)],
)
def test_settings_refused(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^bench.{key}"):
        make(**{key: value})


def test_points_of_a_round() -> None:
    """Lengths ascend, modes have one order, models take turns; tokens a step may be fixed."""
    small = make(lengths="8..16", modes=["decode", "train"], tokens=64, decode_batch_size=3)
    assert [(at.length, at.mode, at.model, at.batch_size) for at in small.points()] == [
        (length, mode, model, size)
        for length in (8, 16)
        for mode, size in (("train", 64 // length), ("decode", 3))
        for model in ("lstm", "rnn")
    ]
    assert small.record()["modes"] == ["train", "decode"]


# ---- a point


def answer(value: int) -> int:
    return value + 1


def run_out_of_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def die() -> None:
    os.kill(os.getpid(), 9)


def hang() -> None:
    time.sleep(60)


def break_() -> None:
    raise RuntimeError("a defect")


@pytest.mark.parametrize(
    ("function", "status"),
    [
        (run_out_of_memory, runner.MEMORY),
        (die, runner.MEMORY),
        (hang, runner.SLOW),
        (break_, runner.FAILED),
    ],
)
def test_how_a_point_ends(function: Callable[[], None], status: str) -> None:
    assert runner.Server().run(function, timeout=0.5 if function is hang else 60)[0] == status


def test_a_point_that_ends_well() -> None:
    assert runner.Server().run(answer, 1, timeout=60) == (runner.OK, 2)


def test_longer_lengths_are_left_out(tmp_path: Path) -> None:
    one = make(lengths=[16, 32], modes=["train"], rounds=1, max_step_seconds=0.001, device="cpu")
    found = runner.run(one, "seqzoo bench")
    for model in one.models:
        first, second = (row for row in found["points"] if row["model"] == model)
        assert first["status"] == runner.SLOW and second["status"] == runner.SKIPPED
        assert second["note"] == "too slow at T=16" and second["tokens_per_second"] is None
    assert "too slow" in write.write(found, tmp_path)


# ---- statistics


def test_fit_finds_the_exponent() -> None:
    x = np.log([512, 1024, 2048, 4096])
    slope, error = results.fit(x, 2 * x + 3, [0.01] * 4)
    assert math.isclose(slope, 2) and error is not None and 0 < error < 0.01
    bent, wide = results.fit(x, 2 * x + np.array([0, 0.2, 0.2, 0]), [0.01] * 4)
    assert math.isclose(bent, 2) and wide is not None and wide > 0.3
    assert results.fit(x[:2], x[:2], [None, None]) == (pytest.approx(1), None)


@pytest.mark.parametrize("slowed", [0.0, 0.3])
def test_noise_covers_another_run(slowed: float) -> None:
    """Of pairs of benches of one machine, 95 in 100 agree within the noise of both; also where a
    busy neighbour slows a third of the rounds down."""
    draw = np.random.default_rng(1)

    def bench() -> list[tuple[float, float]]:
        """A figure and its noise for each of 100 points of seven rounds."""
        logarithms = draw.normal(0, 0.05, (100, 7))
        logarithms += (draw.random((100, 7)) < slowed) * draw.uniform(0.1, 0.6, (100, 7))
        samples = np.exp(logarithms)
        figures = np.quantile(samples, results.FAST, axis=1)
        return list(zip(figures, results.noise(samples.tolist()), strict=True))

    agree = [
        abs(math.log(a / b)) <= math.hypot(noise_a, noise_b)
        for _ in range(5)
        for (a, noise_a), (b, noise_b) in zip(bench(), bench(), strict=True)
    ]
    assert 0.92 < np.mean(agree) < (1 if slowed else 0.99)


@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_crossover(noise: float) -> None:
    models = {"grows": {"grows": True}, "flat": {"grows": False}}
    points = [
        {"model": name, "mode": "decode", "length": T, "status": "ok", "noise": noise}
        | {"milliseconds": ms(T)}
        for name, ms in (("grows", lambda T: T / 100), ("flat", lambda T: 3.0))
        for T in (100, 200, 400)
    ]
    found = results.crossovers(points, models)
    if noise > math.log(4 / 3):
        assert not found
        return
    (cross,) = found
    assert cross["length"] == pytest.approx(300, rel=0.01)
    assert cross["value"] == pytest.approx(3, rel=0.01)


# ---- what is measured


def test_every_point_has_every_field(benches: Path, bench: dict[str, Any]) -> None:
    assert len(bench["points"]) == len(FAMILIES) * 3 * 2
    rounds = {"a": 1, "b": 2}  # the noise of few samples in one round is not always known
    for name, unknown in (("a", {"note", "steady", "noise"}), ("b", {"note", "steady"})):
        for row in json.loads((benches / name / "bench.json").read_text())["points"]:
            assert (row["status"], row["rounds"]) == ("ok", rounds[name]), row
            missing = [key for key in results.COLUMNS if row[key] in (None, "")]
            assert set(missing) <= unknown, (row["model"], missing)
            assert 0 < row["over_base_bytes"] < row["peak_bytes"]
            if rounds[name] == 1:
                assert row["over_base_bytes"] == row["peak_bytes"] - row["base_bytes"]
    with (benches / "a/bench.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == results.COLUMNS and len(table) == len(bench["points"])


@pytest.mark.parametrize("model", FAMILIES)
def test_state_bytes_are_flat_or_linear(bench: dict[str, Any], model: str) -> None:
    """A cache grows by the same number of bytes a token, whatever else has a constant size."""
    for mode in results.FIGURES:
        short, long = results.measured(bench["points"], model, mode)
        grown = long["state_bytes"] - short["state_bytes"]
        if bench["models"][model]["grows"]:
            about = bench["models"][model]["keys"]
            exact = (mode == "decode" and KERNELS) or bench["machine"]["dtype"] == "float32"
            width = 4 if exact else 2  # bytes: a prepared step decodes in float32
            families = [keys["name"] for _, keys in layers(about)]
            caches = sum(name in ("transformer", "fox") for name in families)
            gates = 4 * about["n_heads"] if model == "fox" else 0  # in float32
            assert grown == 16 * caches * (2 * about["dim"] * width + gates)
        else:
            assert grown == 0


@pytest.mark.parametrize("model", FAMILIES)
def test_parameters_are_matched(bench: dict[str, Any], model: str) -> None:
    assert abs(bench["models"][model]["parameters"] / 20_000 - 1) < 0.5  # small widths are coarse


def test_flops_of_attention_grow(bench: dict[str, Any]) -> None:
    for model, about in bench["models"].items():
        in_the_end = about["flops_growth"] - sum(less for _, less in about["flops_bends"])
        assert (in_the_end > 0) == about["grows"], model


# ---- what is written


def test_work_and_share_of_the_peak_by_length(bench: dict[str, Any]) -> None:
    """FLOPs a token, mean over a sequence, and what tokens a second make of them."""
    found = dict(write.tables(bench))
    work = found["Work of training, MFLOPs/token"]
    share = found["Training, share of the machine's peak, %"]
    place = work.head.index("transformer")
    about = bench["models"]["transformer"]
    for i, row in enumerate(results.measured(bench["points"], "transformer", "train")):
        T = row["length"]
        mean = sum(about["flops_first"] + about["flops_growth"] * t for t in range(T)) / T
        assert work.rows[i][place] == number(3 * mean / 1e6)
        reached = row["tokens_per_second"] * 3 * mean / bench["machine"]["peak_flops"]
        assert float(share.rows[i][place]) == pytest.approx(100 * reached, rel=0.01)


def test_figure_has_every_curve(bench: dict[str, Any]) -> None:
    drawn = figures.figure(bench, PANELS)
    shown = [axes for axes in drawn.axes if axes.get_visible()]
    for axes, panel in zip(shown, PANELS, strict=True):
        assert axes.get_title() == panel.title
        for curve, model in zip(axes.containers, bench["models"], strict=True):
            values = [value / panel.scale for _, value in panel.curve(bench, model)]
            assert list(curve[0].get_ydata()) == values and curve.get_label() == model


def test_files(benches: Path) -> None:
    names = {path.name for path in (benches / "a").iterdir()}
    files = {f"bench.{kind}" for kind in ("csv", "json", "md", "png", "svg")}
    assert files | {"report.html", "config.yaml", "tensorboard"} == names
    page = (benches / "a/report.html").read_text()
    assert page.count("<svg") == 1 and page.count("<table") >= 8
    assert "src=" not in page and "<link" not in page and "@import" not in page


@pytest.mark.parametrize("model", FAMILIES)
def test_board_has_a_run_a_model(benches: Path, bench: dict[str, Any], model: str) -> None:
    board = EventAccumulator(str(benches / "a/tensorboard" / model), size_guidance={"scalars": 0})
    board.Reload()
    for panel in PANELS:
        points = [(e.step, e.value) for e in board.Scalars(f"bench/{panel.tag}")]
        assert points == [(T, pytest.approx(v)) for T, v in panel.curve(bench, model)]
        assert [e.step for e in board.Scalars(f"bench_log2/{panel.tag}")] == [4, 5]


def test_board_has_layout_figures_and_machine(benches: Path) -> None:
    board = EventAccumulator(str(benches / "a/tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert set(tags["images"]) == {f"bench/{panel.tag}" for panel in PANELS}
    assert {"custom_scalars__config__", "bench/text_summary"} <= set(tags["tensors"])


def test_two_benches_are_compared(benches: Path) -> None:
    text, agree, points = compare_benches([benches / "a", benches / "b"])
    differences, _, table = text.partition("\n\n")
    assert differences == f"They differ in points: {len(FAMILIES) * 6}; 12"
    assert points == 2 * 3 * 2 and table.count("\n") == points + 2
    assert text.count("unknown") == points and agree == 0  # of benches of one round
    assert "apart" not in text


def test_benches_agree_within_their_noise(benches: Path, tmp_path: Path) -> None:
    bench = json.loads((benches / "b" / "bench.json").read_text())
    for name, factor in (("as before", 1.0), ("slower", 2.0)):
        for point in bench["points"]:
            point["noise"], point["milliseconds"] = 0.1, factor * point["milliseconds"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text(json.dumps(bench))
    first, second = tmp_path / "as before", tmp_path / "slower"
    text, agree, points = compare_benches([first, first])
    assert agree == points > 0 and "14 %" in text and "apart" not in text
    text, agree, points = compare_benches([first, second])
    assert agree == 0 and text.count("apart") == points


# ---- numbers and tables


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (41_812.3, "41,800"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (123.45, "123"),
        (99.6, "99.6"),
        (9.96, "9.96"),
        (99.96, "100"),
        (0.04567, "0.0457"),
        (0, "0"),
        (12, "12"),
        (None, ""),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_markdown_is_aligned() -> None:
    lines = markdown(["run", "loss"], [["a long name", "1.5"], ["b", "22.25"]]).splitlines()
    assert len(set(map(len, lines))) == 1 and lines[1].endswith(": |")


def test_a_family_has_one_colour() -> None:
    """Whatever else is in the figure; and no two names share one as long as there are twenty."""
    alone = colours(["lstm"])["lstm"]
    assert colours([*FAMILIES, "other"])["lstm"] == colours(["other", "lstm"])["lstm"] == alone
    every = [*FAMILIES, "a", "b", "c", "d", "e"]
    assert len(set(colours(every).values())) == len(every)
