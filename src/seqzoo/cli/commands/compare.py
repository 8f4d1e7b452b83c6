"""`seqzoo compare`: training runs, two benches, or two exams."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from seqzoo.cli import launch
from seqzoo.cli.loading import dated
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory

FILES = (
    "report.html, and its parts as .md, .csv, .json, .png, .svg; curves.csv: every point;\n"
    "  tensorboard: mean curves, and their bands over seeds"
)
# The files that tell a bench, an exam and a training run from each other.
BENCH, EXAM, RUN = "bench.json", "exam.json", "metrics.jsonl"


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", metavar="RUN", help="run directories, or folders of them"
    )
    parser.add_argument(
        "--metric",
        help="what to compare by, any of metrics.jsonl (default: the task's first, of val/)",
    )
    parser.add_argument("--out", help="where to write (default: runs/compare/TIME)")


def run(options: Namespace) -> None:
    folders = [Path(folder) for folder in options.folders]
    if any((folder / EXAM).exists() for folder in folders):
        _refuse_options(options, "exams")
        from seqzoo.analysis.compare.exams import compare_exams

        print(compare_exams(folders), end="")
        return
    has_runs, has_benches = (any(_holds(f, marker) for f in folders) for marker in (RUN, BENCH))
    if has_runs and any((folder / BENCH).exists() for folder in folders):
        raise UserError("benches and training runs do not mix: give two benches, or runs")
    if has_benches and not has_runs:
        _compare_benches(options)
        return
    directories = RunDirectory.find(folders)
    from seqzoo.analysis.compare import fair, runs, write

    sets = fair.comparable(runs.load(directories))
    metrics = [fair.pick_metric(each, options.metric) for each in sets]
    out = Path(options.out) if options.out else dated("compare")
    for number, (each, metric) in enumerate(zip(sets, metrics, strict=True), 1):
        if len(sets) > 1:
            print(f"{number}. {each[0].task}: {each[0].summary.get('data', 'no data known')}\n")
        folder = out if len(sets) == 1 else out / str(number)
        print(write.write(each, metric, folder))
        print(f"written to {folder}:\n  {FILES}\n")
    if len(sets) > 1:
        print(
            f"These runs were evaluated on {len(sets)} different data or tasks, across which no "
            "metric ranks them: each has its own table."
        )
    print(f"next:\n  {launch.command()} dashboard {shlex.quote(str(out))}")


def _holds(folder: Path, marker: str) -> bool:
    return any(folder.rglob(marker))


def _compare_benches(options: Namespace) -> None:
    _refuse_options(options, "benches")
    from seqzoo.analysis.compare.benches import compare_benches

    found = RunDirectory.find(options.folders, BENCH)
    table, agree, points = compare_benches([directory.path for directory in found])
    print(f"{table}\n{agree} of {points} points agree within the noise of both")


def _refuse_options(options: Namespace, what: str) -> None:
    for option in ("metric", "out"):
        if getattr(options, option):
            raise UserError(
                f"--{option} {getattr(options, option)}: only for training runs; two {what} are "
                f"compared on the terminal: leave --{option} out"
            )
