"""A whole exam: its cells, a bench of the same models, and the results of both."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from seqzoo.bench import plan as bench_plan
from seqzoo.exam import results
from seqzoo.exam.cells import Cells, Name
from seqzoo.exam.plan import Plan
from seqzoo.models import hybrid
from seqzoo.models.zoo import layers, model_keys

SPEED_MODES = ["train", "decode"]


def run(
    plan: Plan, folder: Path, name: Name, command: str, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure a plan, or what is left of it, in a directory.

    Args:
        name: of the directory of a cell, below `folder/cells`.
        command: the command line, which the results show.

    Returns:
        The content of exam.json: `command`, `date`, `seconds`, `machine`, `versions`; `exam`, the
        settings; `models`, of each the families of its layers; `planned`, the number of cells, and
        `cells`, those that ran; `scores`, `curves` and `costs`, see `results`; `stopped`, whether
        Ctrl-C ended it.
    """
    date, start = datetime.now().isoformat(timespec="minutes", sep=" "), time.perf_counter()
    cells = Cells(plan, folder / "cells", name, show)
    cells.measure()
    bench = None
    if plan.settings.speed and not cells.stopped:
        bench = _bench(plan, folder / "bench", command, show)
    length = plan.settings.speed_length
    first = len(plan.settings.rates) * len(plan.models) * len(plan.abilities)
    further = (plan.settings.seeds - 1) * len(plan.models) * len(plan.abilities)
    return {
        "command": command,
        "date": date,
        "seconds": time.perf_counter() - start,
        "machine": bench["machine"]["name"] if bench else platform.processor(),
        "versions": {each: version(each) for each in ("seqzoo", "torch", "numpy")},
        "exam": asdict(plan.settings),
        "models": {model: _families(model, keys) for model, keys in plan.models.items()},
        "planned": first + further,
        "cells": [
            {
                **asdict(answer.cell),
                "status": answer.status,
                "note": answer.note,
                "folder": answer.folder.name,
                "seconds": answer.summary.get("train_seconds"),
            }
            for answer in cells.answers.values()
        ],
        "scores": list(results.scores(cells)),
        "curves": list(results.curves(cells)),
        "costs": list(results.costs(bench, length)) if bench else [],
        "stopped": cells.stopped,
    }


def _families(model: str, keys: dict[str, Any]) -> list[str]:
    return [own["name"] for _, own in layers(model_keys(model, **keys))]


def _bench(
    plan: Plan, folder: Path, command: str, show: Callable[[str], None]
) -> dict[str, Any] | None:
    """The bench of the same models, which is not measured again where it was before."""
    settings = plan.settings
    asked = {
        "lengths": [settings.speed_length],
        "modes": SPEED_MODES,
        "parameters": settings.parameters,
        "rounds": settings.speed_rounds,
    }
    request = json.dumps([asked, plan.models], sort_keys=True)
    kept, of = folder / "bench.json", folder / "request.json"
    if kept.exists() and of.exists() and of.read_text(encoding="utf-8") == request:
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    from seqzoo.bench import runner, write

    show("speed, memory and state:")
    one = bench_plan.make({"models": list(plan.models), "model": {}, "bench": asked})
    models = {name: hybrid.merged(keys, plan.models[name]) for name, keys in one.models.items()}
    one = replace(one, models=models)  # each model's own keys: a hybrid has more layers
    found = runner.run(one, command)
    folder.mkdir(parents=True, exist_ok=True)
    write.write(found, folder)
    if found["rounds_done"] == settings.speed_rounds:
        of.write_text(request, encoding="utf-8")
    return found
