"""The tables of a comparison of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from seqzoo.analysis.compare.groups import Group, difference
from seqzoo.analysis.compare.runs import TrainingRun, differing_keys
from seqzoo.config.values import shown
from seqzoo.report.text import Table, number

SHOWN = (
    *("parameters", "steps", "tokens", "train_seconds", "tokens_per_second"),
    *("flops", "flops_per_token", "peak_share"),
)


def record(run: TrainingRun, group: Group, metric: str) -> dict[str, Any]:
    """A run as compare.json and compare.csv hold it."""
    last = run.metrics[-1] if run.metrics else {"step": 0, "tokens": 0}
    known = {"steps": last["step"], "tokens": last["tokens"], **run.summary}
    known["flops_per_token"] = run.flops_per_token
    known["flops"] = known.get("tokens", 0) * run.flops_per_token
    result = run.result(metric)
    return {
        "run": run.name,
        metric: None if math.isnan(result) else result,
        **{key: _known(known.get(key)) for key in SHOWN},
        "configuration": group.name,
        "seed": run.seed,
        "status": run.status,
        "folder": str(run.folder),
    }


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def results(groups: Sequence[Group], metric: str, costs: Sequence[str] = SHOWN) -> Table:
    """Result and costs of each group, in their order. Where a group has several seeds: the mean,
    the standard deviation and the number of seeds; of the costs the mean."""
    several = any(len(group.runs) > 1 for group in groups)
    rows = []
    for group in groups:
        values = group.results(metric)
        records = [record(run, group, metric) for run in group.ranked or group.runs]
        cells = [group.name, f"{group.mean(metric):.4f}" if values else ""]
        if several:
            deviation = group.deviation(metric)
            cells += ["" if deviation is None else f"{deviation:.4f}", str(len(values))]
        status = group.status if group.ranked else f"{group.status}: not ranked"
        rows.append([*cells, *(_cost(records, key) for key in costs), status])
    head = ["run", metric, *(["sd", "seeds"] if several else []), *costs, "status"]
    return Table(head, rows)


def _cost(records: Sequence[Mapping[str, Any]], key: str) -> str:
    """The mean of a column over runs."""
    values = [each[key] for each in records if each[key] is not None]
    if not values:
        return ""
    mean = sum(values) / len(values)
    if key.startswith("flops"):
        return f"{mean:.2e}"
    whole = all(isinstance(value, int) for value in values)
    return number(round(mean), 15) if whole else number(mean)


def against_best(groups: Sequence[Group], metric: str) -> Table:
    """How far each group is from the first, over the seeds that both have."""
    best, *others = groups
    rows = []
    for group in others:
        if found := difference(best, group, metric):
            interval = f"{found.low:+.4f} to {found.high:+.4f}"
            verdict = "apart" if found.apart else "not told apart"
            rows.append([group.name, f"{found.mean:+.4f}", interval, str(found.n), verdict])
    head = [f"{metric} less that of {best.name}", "mean", "95 % interval", "seeds", ""]
    return Table(head, rows)


def differences(groups: Sequence[Group]) -> Table:
    """The keys whose values differ; the cell of a group without the key is empty."""
    firsts = [group.runs[0] for group in groups]
    keys = [key for key in differing_keys(firsts) if key != "model.name"]
    rows = [
        [group.name, *(shown(run.keys[key]) if key in run.keys else "" for key in keys)]
        for group, run in zip(groups, firsts, strict=True)
    ]
    return Table(["run", *keys], rows if keys else [])
