"""`seqzoo eval`: the metrics of a run."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from seqzoo import tasks
from seqzoo.cli.launch import metric_lines
from seqzoo.cli.loading import load_run, search_keys
from seqzoo.cli.parser import add_cache, add_run, add_search
from seqzoo.config.requires import check_requirements
from seqzoo.errors import UserError
from seqzoo.runs.directory import RunDirectory


def add(parser: ArgumentParser) -> None:
    parser.description = (
        "Measure a run again, on its own data or on other data. At a terminal: aligned, with\n"
        "units; in a pipe: a line a metric, with a tab between name and value."
    )
    add_run(parser)
    parser.add_argument("--split", default="val", choices=("val", "test"), help="default: val")
    parser.add_argument("--path", help="another file to measure on, of the kind the task reads")
    add_search(parser)
    add_cache(parser)


def run(options: Namespace) -> None:
    if options.path and not Path(options.path).is_file():
        what = "a folder" if Path(options.path).is_dir() else "no such file"
        raise UserError(f"--path {options.path}: {what}: give a file of the kind the task reads")
    if options.path and options.split != "val":
        raise UserError(f"--split {options.split}: all of --path is measured: leave --split out")
    directory = RunDirectory.open(Path(options.folder))
    task = directory.config["task"]
    check_requirements(directory.config, directory.path, "model", "task")
    if options.path and not tasks.entry(task["name"]).sources:
        raise UserError(f"--path {options.path}: task={task['name']} makes its data: leave it out")
    search = search_keys(options)
    for key in search:
        if key not in tasks.declaration(task["name"]).keys:
            option = "--" + key.replace("_", "-")
            raise UserError(
                f"{option}: a run of task={task['name']}, which has no search: leave it out"
            )
    if not options.path and "imported_from" in directory.summary:
        raise UserError(f"{options.folder}: imported, it has no data of its own: give --path FILE")
    data: dict[str, Any] = {}
    if options.path:  # in place of whatever the run's own data was
        data = {key: None for key in tasks.entry(task["name"]).sources if key in task}
        data["path"] = options.path
    metrics = load_run(options).evaluate(options.split, search, **data)
    if sys.stdout.isatty():
        print(*metric_lines(metrics), sep="\n")
    else:
        print(*(f"{name}\t{value:.4f}" for name, value in metrics.items()), sep="\n")
