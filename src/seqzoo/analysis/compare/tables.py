"""The tables of compared runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqzoo.analysis.compare.runs import TrainingRun, differing_keys
from seqzoo.config.values import shown
from seqzoo.report.text import Table, number

SHOWN = ("parameters", "steps", "tokens", "train_seconds", "tokens_per_second", "flops")


def record(run: TrainingRun, metric: str) -> dict[str, Any]:
    """A run as compare.json and compare.csv hold it."""
    last = run.metrics[-1] if run.metrics else {}
    known = {"steps": last.get("step"), "tokens": last.get("tokens"), **run.summary}
    known["flops"] = known["tokens"] * run.flops_per_token
    return {
        "run": run.name,
        metric: run.result(metric),
        **{key: known.get(key) for key in SHOWN},
        "status": known.get("status", "running or killed"),
        "folder": str(run.folder),
    }


def results(records: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """The result and the cost of each run, in their order."""
    rows = []
    for each in records:
        digits = {key: 15 if isinstance(each[key], int) else 3 for key in SHOWN}
        cells = {key: number(each[key], digits[key]) for key in SHOWN}
        cells["flops"] = f"{each['flops']:.2e}"
        rows.append([each["run"], f"{each[metric]:.4f}", *cells.values(), each["status"]])
    return Table(["run", metric, *SHOWN, "status"], rows)


def differences(runs: Sequence[TrainingRun]) -> Table:
    """The keys whose values differ; the cell of a run without the key is empty."""
    keys = [key for key in differing_keys(runs) if key != "model.name"]
    rows = [
        [run.name, *(shown(run.keys[key]) if key in run.keys else "" for key in keys)]
        for run in runs
    ]
    return Table(["run", *keys], rows if keys else [])


def note(runs: Sequence[TrainingRun]) -> str:
    """A warning where the runs have different data."""
    if len({run.summary.get("data_sha256") for run in runs} - {None}) > 1:
        return "\nThe runs were trained or evaluated on different data.\n"
    return ""
