"""Speed, memory and state against sequence length, for any models on one axis.

settings    every key of a bench, declared once
plan        which points are measured: (model, mode, length)
measure     what one point costs; timing, memory: how it is measured
runner      rounds over all points, each point in a process of its own
results     from times to rows: quartiles and noise; growth: exponents and crossovers
tables, figures, files      what a bench leaves on disk

`settings` and `plan` load no torch, so that a wrong request is refused at once.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqzoo.bench.plan import Plan


def run(plan: Plan, command: str) -> dict[str, Any]:
    """Measure a plan: the content of bench.json.

    Args:
        command: the command line, which the results show.

    Raises:
        UserError: the device is not on this machine.
        RuntimeError: a model cannot be built.
    """
    from seqzoo.bench import results, runner

    date = datetime.now().isoformat(timespec="minutes", sep=" ")
    raw = runner.run(plan)
    return results.summarise({"command": command, "date": date, "bench": plan.record(), **raw})


def write(found: dict[str, Any], folder: Path) -> str:
    """Write every file of a bench into its directory; returns the tables in Markdown."""
    from seqzoo.bench import files, tables

    files.write(found, folder)
    return tables.markdown(found)
