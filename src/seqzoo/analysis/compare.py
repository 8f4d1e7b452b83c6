"""Training runs side by side: curves against steps, tokens, seconds and FLOPs; a table; what
differs; translations by the length of their sources. And bench runs of one machine, held to their
own noise."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo import config, report
from seqzoo.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"step": "steps", "tokens": "tokens", "seconds": "seconds", "flops": "FLOPs"}
# Of these the higher is the better; of all others, the lower.
HIGHER = ("exact", "token_accuracy", "bleu", "bleu_tokenised", "chrf", "tokens_per_second")
SHOWN = ("parameters", "steps", "tokens", "train_seconds", "tokens_per_second", "flops")


@dataclass
class Trained:
    """A run's numbers, without its model.

    Attributes:
        name: what tells it from the others: its model, and the keys that differ.
        keys: its configuration, flat.
        metrics: the lines of metrics.jsonl.
        summary: summary.json; {} of a run that has not ended.
        flops_per_token: of training, a forward and a backward pass.
    """

    folder: Path
    name: str
    keys: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    flops_per_token: float

    def curve(self, metric: str, axis: str) -> list[tuple[float, float]]:
        """(x, value) wherever the metric was logged."""
        scale = self.flops_per_token if axis == "flops" else 1
        column = "tokens" if axis == "flops" else axis
        return [
            (line[column] * scale, line[metric])
            for line in self.metrics
            if line.get(metric) is not None
        ]

    def result(self, metric: str) -> float:
        """The summary's value, of the best checkpoint; of a run without one, the last logged."""
        logged = [math.nan, *(value for _, value in self.curve(metric, "step"))]
        return float(self.summary.get(metric, logged[-1]))


def find(paths: Sequence[str | Path], marker: str = "metrics.jsonl") -> list[Path]:
    """The run directories among some folders and below them, in order, none twice.

    Raises:
        UserError: a folder in which there is none.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        below = sorted(file.parent for file in path.rglob(marker)) if path.is_dir() else []
        if not below:
            raise UserError(
                f"{path}: no run in it: give directories that seqzoo made, or one above"
            )
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def load(folders: Sequence[Path]) -> list[Trained]:
    """Read runs back, and name them by what differs."""
    from seqzoo.models.cost import flops_of_training
    from seqzoo.models.zoo import build

    runs = []
    for folder in folders:
        saved = config.read_config(folder)
        summary = config.read_summary(folder)
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        model = build(**config.vocabulary_sizes(folder), **saved["model"]).eval()
        seq_len = summary.get("seq_len", saved["task"].get("seq_len", 1))
        runs.append(
            Trained(
                folder=folder,
                name=saved["model"]["name"],
                keys=config.flat(saved),
                metrics=[json.loads(line) for line in text.splitlines()],
                summary=summary,
                flops_per_token=flops_of_training(model, seq_len),
            )
        )
    names = [_name(run, [r for r in runs if r.name == run.name]) for run in runs]
    for run, name in zip(runs, names, strict=True):
        alike = [r.folder for r, other in zip(runs, names, strict=True) if other == name]
        run.name = name if len(alike) == 1 else f"{name} ({_tail(run.folder, alike)})"
    return runs


def different(runs: Sequence[Trained]) -> list[str]:
    """The keys whose values are not the same in all runs that have them."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    return [k for k in keys if len({repr(run.keys[k]) for run in runs if k in run.keys}) > 1]


def _name(run: Trained, same_model: Sequence[Trained]) -> str:
    """The model's name, then the keys that tell the run from the others of its model, if they are
    not many."""
    told = [f"{k.rpartition('.')[2]}={config.shown(run.keys[k])}" for k in different(same_model)]
    name = " ".join([run.name, *told])
    return name if len(name) <= 60 else run.name


def _tail(folder: Path, alike: Sequence[Path]) -> str:
    """As much of the end of a path as none of the others has."""
    parts = folder.resolve().parts
    others = [path.resolve().parts for path in alike if path != folder]
    n = next(n for n in range(1, 99) if all(other[-n:] != parts[-n:] for other in others))
    return "/".join(parts[-n:])


def pick_metric(runs: Sequence[Trained], wanted: str | None) -> str:
    """The metric asked for, or the first validation metric that every run has.

    Raises:
        UserError: not all runs have it.
    """
    common = [
        key
        for key in dict.fromkeys(k for line in runs[0].metrics for k in line)
        if "/" in key
        and all(run.curve(key, "step") for run in runs)
        and not isinstance(runs[0].curve(key, "step")[0][1], str)
    ]
    ordered = [k for k in common if k.startswith("val/")] + common
    if not ordered or (wanted is not None and wanted not in common):
        raise UserError(
            f"--metric {wanted or 'val/loss'}: not in all of these runs"
            f"{config.nearest(wanted or '', common)}"
        )
    return wanted or ordered[0]


# ---- what is written


def write(runs: Sequence[Trained], metric: str, out: Path) -> str:
    """compare.json, .csv, .md, .png, .svg and report.html in `out`; lengths.png and .svg too, where
    runs were scored by the length of their sources.

    Returns:
        The tables, in Markdown.
    """
    sign = -1 if metric.split("/")[1].partition("_by_")[0].endswith(HIGHER) else 1
    runs = sorted(runs, key=lambda run: sign * run.result(metric))
    out.mkdir(parents=True, exist_ok=True)
    records = [{"run": run.name, **_record(run, metric), "folder": str(run.folder)} for run in runs]
    (out / "compare.json").write_text(
        json.dumps({"metric": metric, "runs": records}, indent=1) + "\n"
    )
    text = report.to_csv(list(records[0]), records)
    (out / "compare.csv").write_text(text, encoding="utf-8")
    shown = [table(records, metric), differences(runs)]
    colours = report.colours([run.name for run in runs])
    figures = {"compare": figure(runs, metric, colours)}
    if lengths := by_length(runs):
        shown.append(lengths.table())
        figures["lengths"] = lengths.figure(colours)
    tables = "\n".join(report.markdown(*one) for one in shown if one[1])
    note = "They did not all learn from the same data, nor were all measured on the same.\n"
    if len({run.summary.get("data_sha256") for run in runs} - {None}) > 1:
        tables += f"\n{note}"
    (out / "compare.md").write_text(tables, encoding="utf-8")
    for name, whole in figures.items():
        report.save(whole, out / name)
    parts = [report.svg(whole) for whole in figures.values()]
    parts += [report.html_table(*one) for one in shown if one[1]]
    page = report.page(f"seqzoo compare: {metric}", *parts)
    (out / "report.html").write_text(page, encoding="utf-8")
    return tables


def _record(run: Trained, metric: str) -> dict[str, Any]:
    last = run.metrics[-1] if run.metrics else {}
    known = {"steps": last.get("step"), "tokens": last.get("tokens"), **run.summary}
    return {
        metric: run.result(metric),
        **{key: known.get(key) for key in SHOWN if key != "flops"},
        "flops": known["tokens"] * run.flops_per_token,
        "status": known.get("status", "running or killed"),
    }


def table(records: Sequence[Mapping[str, Any]], metric: str) -> report.Table:
    """The result of each, in their order."""
    rows = []
    for record in records:
        cells = {
            key: report.number(record[key], 15 if isinstance(record[key], int) else 3)
            for key in SHOWN
        }
        cells["flops"] = f"{record['flops']:.2e}"
        rows.append([record["run"], f"{record[metric]:.4f}", *cells.values(), record["status"]])
    return ["run", metric, *SHOWN, "status"], rows


def differences(runs: Sequence[Trained]) -> report.Table:
    """The hyper-parameters that differ; a run whose model lacks a key has none there."""
    keys = [key for key in different(runs) if key != "model.name"]
    shown = [[config.shown(r.keys[k]) if k in r.keys else "" for k in keys] for r in runs]
    return ["run", *keys], [
        [r.name, *row] for r, row in zip(runs, shown, strict=True)
    ] if keys else []


def by_length(runs: Sequence[Trained]) -> Lengths | None:
    """How well runs translate by the length of the source, on test rather than on val, as their
    tasks logged it (`test/bleu_by_words/06-10`): of the score that most of them have."""
    for split in ("test", "val"):
        pattern = re.compile(rf"({split}/\w+)_by_(\w+)/(.+)")
        found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        for run in runs:
            for key, value in run.summary.items():
                if match := pattern.fullmatch(key):
                    metric, unit, length = match.groups()
                    scores = found.setdefault((metric, unit), {})
                    scores.setdefault(run.name, {})[length] = value
        if found:
            (metric, unit), scores = max(found.items(), key=lambda item: len(item[1]))
            return Lengths(metric, unit, scores)
    return None


@dataclass
class Lengths:
    """A metric of some runs, by how many words or letters a source has: {run: {"06-10": value}}."""

    metric: str
    unit: str
    scores: dict[str, dict[str, float]]

    @property
    def bins(self) -> list[str]:
        return sorted({each for of in self.scores.values() for each in of})

    def table(self) -> report.Table:
        """A row a run, a column a length."""
        rows = [
            [name, *(report.number(of.get(each)) for each in self.bins)]
            for name, of in self.scores.items()
        ]
        return [f"{self.metric} by {self.unit} of the source", *self.bins], rows

    @report.style()
    def figure(self, colours: Mapping[str, Any]) -> Figure:
        """A curve a run, in its colour."""
        from matplotlib.figure import Figure

        whole = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = whole.subplots()
        for name, of in self.scores.items():
            places = [self.bins.index(each) for each in of]
            axes.plot(places, list(of.values()), marker="o", color=colours[name], label=name)
        axes.set_xticks(range(len(self.bins)), self.bins)
        axes.set(xlabel=f"{self.unit} of the source", ylabel=self.metric, ylim=(0, None))
        report.legend_below(whole, 2)
        return whole


@report.style()
def figure(runs: Sequence[Trained], metric: str, colours: Mapping[str, Any]) -> Figure:
    """The metric against steps, tokens, seconds and FLOPs."""
    from matplotlib.figure import Figure

    whole = Figure(figsize=(10, 7), layout="constrained")
    for axes, (axis, text) in zip(
        whole.subplots(2, 2, sharey=True).flat, AXES.items(), strict=True
    ):
        for run in runs:
            if curve := run.curve(metric, axis):
                axes.plot(
                    *zip(*curve, strict=True),
                    marker="o",
                    color=colours[run.name],
                    label=run.name,
                )
        axes.set(xlabel=text, ylabel=metric)
    report.legend_below(whole, 4)
    return whole


# ---- bench runs


def benches(folders: Sequence[Path]) -> tuple[str, int, int]:
    """Two benches: the ratio of each point they share, and whether it is within the noise that the
    two print together.

    Returns:
        The table in Markdown, the points that agree, and all.

    Raises:
        UserError: not two, or nothing in common.
    """
    if len(folders) != 2:
        given = ", ".join(map(str, folders))
        raise UserError(f"{given}: give two different benches, or training runs")
    first, second = map(_read_bench, folders)
    keys = ("model", "mode", "length", "batch_size")
    others = {tuple(row[k] for k in keys): row for row in second["points"] if row["status"] == "ok"}
    rows, agree = [], 0
    for row in first["points"]:
        other = others.get(tuple(row[k] for k in keys))
        if other is None or row["status"] != "ok":
            continue
        ratio = other["milliseconds"] / row["milliseconds"]
        noise = math.hypot(row["noise"] or 0, other["noise"] or 0)
        within = abs(math.log(ratio)) <= noise
        agree += within
        shown = [f"{ratio:.3f}", f"{100 * noise:.0f} %", "" if within else "apart"]
        rows.append([f"{row['model']} {row['mode']}", report.length(row["length"]), *shown])
    if not rows:
        raise UserError(f"{folders[0]} and {folders[1]} have no point in common")
    head = ["point", "T", "time, second / first", "noise", ""]
    return _apart(first, second) + report.markdown(head, rows), agree, len(rows)


def _read_bench(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "bench.json").read_text()))
    except ValueError as error:
        raise UserError(
            f"{folder / 'bench.json'}: damaged ({error}): run that bench again"
        ) from None


def _apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """In what two benches differ that is not their noise, in lines."""
    settings = "parameters vocab_size threads compile decode_batch_size".split()
    told = [
        (key, *(bench["machine"][key] for bench in (first, second)))
        for key in ("name", "device", "dtype", "threads", "versions")
    ]
    told += [(key, *(bench["bench"].get(key) for bench in (first, second))) for key in settings]
    counts = [len(bench["points"]) for bench in (first, second)]
    told.append(("points", *counts))
    lines = [f"They differ in {key}: {a}; {b}\n" for key, a, b in told if a != b]
    return "".join(lines) + "\n" * bool(lines)
