"""`seqzoo classify`: texts given, or the lines of standard input."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from seqzoo.cli.loading import load_run, standard_input
from seqzoo.cli.parser import add_run


def add(parser: ArgumentParser) -> None:
    parser.description = (
        "Classify texts, or the lines of standard input: label, probability in percent, text. An\n"
        "empty text has an empty label, and 0.0 %."
    )
    add_run(parser)
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help="none: standard input")


def run(options: Namespace) -> None:
    run = load_run(options, "classify")
    for texts in [options.texts] if options.texts else standard_input():
        for text, (label, probability) in zip(texts, run.classify(texts), strict=True):
            print(f"{label}\t{100 * probability:.1f} %\t{text}", flush=True)
