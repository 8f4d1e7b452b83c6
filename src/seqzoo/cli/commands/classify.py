"""`seqzoo classify`: texts given, or the lines of standard input."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from seqzoo.cli.loading import load_run, standard_input
from seqzoo.cli.parser import add_run


def add(parser: ArgumentParser) -> None:
    parser.description = (
        "Classify texts, or the lines of standard input: label, probability in percent, text."
    )
    add_run(parser)
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help="none: standard input")


def run(options: Namespace) -> None:
    run = load_run(options, "classify")
    for texts in [options.texts] if options.texts else standard_input():
        found = iter(run.classify([text for text in texts if text]))
        for text in texts:  # an empty one is answered by an empty line
            label, probability = next(found) if text else ("", 0.0)
            print(f"{label}\t{100 * probability:.1f} %\t{text}" if text else "", flush=True)
