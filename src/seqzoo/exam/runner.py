"""A whole exam: its cells, a bench of the same models, and the results of both."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from seqzoo.bench import plan as bench_plan
from seqzoo.errors import UserError
from seqzoo.exam import results
from seqzoo.exam.cells import Cells, Name
from seqzoo.exam.plan import Plan
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
        The content of exam.json: `command`, `date`, `seconds`, `machine`, `versions`; `stopped`,
        whether Ctrl-C ended it; `costs_failed`, why there is no bench; `exam`, the settings, and
        `abilities`; `models`, of each the families of its layers, and `keys`, what each was given;
        `planned`, the number of cells, and `cells`, those that ran; `scores`, `curves` and `costs`,
        see `results`.

    Raises:
        UserError: a model that cannot be measured as `seqzoo bench` does, before any cell is run.
    """
    from seqzoo.bench.measure import device_name
    from seqzoo.training.device import pick_device

    start = time.perf_counter()
    machine = device_name(pick_device(plan.settings.device, "exam.device"))
    costs = _Costs(plan, folder / "bench", command, machine) if plan.settings.speed else None
    cells = Cells(plan, folder / "cells", name, show)
    cells.measure()
    bench = None if costs is None else costs.kept()
    failed, stopped = None, cells.stopped
    if costs is not None and bench is None and not stopped:
        show("speed, memory and state:")
        try:
            bench = costs.measure()
            stopped = bench["rounds_done"] < plan.settings.speed_rounds
        except KeyboardInterrupt:
            stopped = True
        except (UserError, RuntimeError, OSError) as error:
            failed = str(error)
            show(f"speed, memory and state: failed: {error}")
    return {
        "command": command,
        "date": datetime.now().isoformat(timespec="minutes", sep=" "),
        "seconds": time.perf_counter() - start,
        "machine": machine,
        "stopped": stopped,
        "costs_failed": failed,
        **_record(plan, cells, bench),
    }


def _record(plan: Plan, cells: Cells, bench: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was asked, and what the cells and the bench gave."""
    settings = plan.settings
    pairs = len(plan.models) * len(plan.abilities)
    return {
        "versions": {each: version(each) for each in ("seqzoo", "torch", "numpy")},
        "exam": asdict(settings),
        "abilities": [asdict(each) for each in plan.abilities],
        "models": {model: _families(model, keys) for model, keys in plan.models.items()},
        "keys": plan.models,
        "planned": (len(settings.rates) + settings.seeds - 1) * pairs,
        "cells": [
            {
                **asdict(answer.cell),
                "status": answer.status,
                "note": answer.note,
                "folder": answer.folder.name,
                "seconds": answer.summary.get("train_seconds"),
                "steps": answer.summary.get("steps"),
                "steps_asked": plan.steps(answer.cell.ability),
                "data_sha256": answer.summary.get("data_sha256"),
                "versions": answer.summary.get("versions"),
                "device": answer.summary.get("device"),
                "threads": answer.summary.get("threads"),
            }
            for answer in cells.answers.values()
        ],
        "scores": list(results.scores(cells)),
        "curves": list(results.curves(cells)),
        "costs": list(results.costs(bench, settings.speed_length)) if bench else [],
    }


def _families(model: str, keys: dict[str, Any]) -> list[str]:
    return [own["name"] for _, own in layers(model_keys(model, **keys))]


class _Costs:
    """A bench of the models of an exam, which is not measured again where it is whole."""

    def __init__(self, plan: Plan, folder: Path, command: str, machine: str) -> None:
        settings = plan.settings
        asked = {
            "lengths": [settings.speed_length],
            "modes": SPEED_MODES,
            "parameters": settings.parameters,
            "rounds": settings.speed_rounds,
            "device": settings.device,
        }
        plans = [  # of each model on its own, as each has its own keys: a hybrid has more layers
            bench_plan.make({"models": [name], "model": keys, "bench": asked})
            for name, keys in plan.models.items()
        ]
        models = {name: keys for each in plans for name, keys in each.models.items()}
        self.plan = replace(plans[0], models=models)
        self.request = json.dumps([asked, models, machine, version("torch")], sort_keys=True)
        self.folder, self.command = folder, command
        self.found, self.of = folder / "bench.json", folder / "request.json"

    def kept(self) -> dict[str, Any] | None:
        """What was measured before, if the same was asked."""
        if not self.found.exists() or not self.of.exists():
            return None
        if self.of.read_text(encoding="utf-8") != self.request:
            return None
        return dict(json.loads(self.found.read_text(encoding="utf-8")))

    def measure(self) -> dict[str, Any]:
        """Measure now, and keep it. What is not whole is measured again the next time."""
        from seqzoo.bench import runner, write

        found = runner.run(self.plan, self.command)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.of.unlink(missing_ok=True)
        write.write(found, self.folder)
        measured = all(each["status"] in (runner.OK, runner.SLOW) for each in found["points"])
        if measured and found["rounds_done"] == self.plan.settings.rounds:
            self.of.write_text(self.request, encoding="utf-8")
        return found
