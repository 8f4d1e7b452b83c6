"""`seqzoo compare`: training runs, or two benches."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from seqzoo.cli.loading import dated
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory

BENCH, RUN = "bench.json", "metrics.jsonl"  # the files that tell a bench from a training run


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", metavar="RUN", help="run directories, or folders of them"
    )
    parser.add_argument("--metric", help="what to compare by (default: the first val/ they share)")
    parser.add_argument("--out", help="where to write (default: runs/compare/TIME)")


def run(options: Namespace) -> None:
    folders = [Path(folder) for folder in options.folders]
    has_runs, has_benches = (any(_holds(f, marker) for f in folders) for marker in (RUN, BENCH))
    if has_runs and any((folder / BENCH).exists() for folder in folders):
        raise UserError("benches and training runs do not mix: give two benches, or runs")
    if has_benches and not has_runs:
        _compare_benches(options)
        return
    directories = RunDirectory.find(folders)
    from seqzoo.analysis.compare import runs, write

    trained = runs.load(directories)
    out = Path(options.out) if options.out else dated("compare")
    print(write.write(trained, runs.pick_metric(trained, options.metric), out))
    print(f"written to {out}:\n  report.html, and its parts as .md, .csv, .json, .png, .svg")


def _holds(folder: Path, marker: str) -> bool:
    return any(folder.rglob(marker))


def _compare_benches(options: Namespace) -> None:
    for option in ("metric", "out"):
        if getattr(options, option):
            raise UserError(
                f"--{option} {getattr(options, option)}: only for training runs; two benches are "
                f"compared on the terminal: leave --{option} out"
            )
    from seqzoo.analysis.compare.benches import compare_benches

    found = RunDirectory.find(options.folders, BENCH)
    table, agree, points = compare_benches([directory.path for directory in found])
    print(f"{table}\n{agree} of {points} points agree within the noise of both")
