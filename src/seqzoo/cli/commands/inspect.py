"""`seqzoo inspect`: what a trained language model depends on, attends to and represents."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from seqzoo import tasks
from seqzoo.cli.loading import dated, load_run
from seqzoo.cli.parser import add_run, value
from seqzoo.config.values import Count


def add(parser: ArgumentParser) -> None:
    parser.epilog = f"It takes runs of task={' or task='.join(tasks.supporting('inspect'))}."
    add_run(parser, several=True)
    parser.add_argument(
        "--length",
        type=value(Annotated[int, Field(ge=2)]),
        default=256,
        help="tokens a text (default: 256)",
    )
    parser.add_argument("--texts", type=value(Count), default=32, help="how many (default: 32)")
    parser.add_argument(
        "--out", help="folder for figures of several runs (default: runs/inspect/TIME)"
    )


def run(options: Namespace) -> None:
    runs = [load_run(options, "inspect", folder) for folder in options.folder]
    from seqzoo.analysis.inspect.figures import curves
    from seqzoo.analysis.inspect.measure import measure
    from seqzoo.analysis.inspect.write import write
    from seqzoo.report import figures as look

    findings = []
    for run in runs:
        found = measure(run, length=options.length, texts=options.texts)
        findings.append((run.config["model"]["name"], found))
        print(*write(*findings[-1], run.directory), sep="\n")
    if len(findings) > 1:
        out = Path(options.out) if options.out else dated("inspect")
        out.mkdir(parents=True, exist_ok=True)
        print(*look.save(curves(findings), out), sep="\n")
