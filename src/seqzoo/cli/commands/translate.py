"""`seqzoo translate`: sentences given, or the lines of standard input."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import count as counter
from pathlib import Path
from typing import TYPE_CHECKING

from seqzoo.cli.loading import load_run, search_keys, standard_input
from seqzoo.cli.parser import add_run, add_search, value
from seqzoo.config import files
from seqzoo.config.values import Count
from seqzoo.errors import UserError

if TYPE_CHECKING:
    from seqzoo.runs.run import Run

FIGURES = (".png", ".svg", ".pdf")


def add(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "sentences", nargs="*", default=[], metavar="SENTENCE", help="none: standard input"
    )
    add_search(parser)
    parser.add_argument(
        "--n-best",
        type=value(Count),
        metavar="N",
        help="N translations a sentence, of as many beams: number of the sentence, score, text",
    )
    parser.add_argument(
        "--attention",
        metavar="FILE",
        help="draw the attention to the source, for one SENTENCE: a .png, .svg or .pdf",
    )


def run(options: Namespace) -> None:
    _check_attention(options)
    run = load_run(options, "translate")
    task = run.config["task"]
    task = {**files.defaults("task", task["name"]), **task, **search_keys(options)}
    beams = max(task["beam"], options.n_best or 1)
    search = {"beams": beams, "length_penalty": task["length_penalty"]}
    warned: set[str] = set()
    if options.attention:
        _warn_of_unknown(run, options.sentences, warned)
        text, figure = run.align(options.sentences[0], **search)
        figure.savefig(options.attention)
        print(text)
        return
    numbers = counter(1)
    for sentences in [options.sentences] if options.sentences else standard_input():
        _warn_of_unknown(run, sentences, warned)
        if not options.n_best:
            print(*run.translate(sentences, **search), sep="\n", flush=True)
            continue
        for best in run.n_best(sentences, **search):
            number = next(numbers)
            for text, score in best[: options.n_best]:
                print(f"{number}\t{score:.4f}\t{text}", flush=True)


def _check_attention(options: Namespace) -> None:
    file = options.attention
    if file is None:
        return
    if len(options.sentences) != 1 or options.n_best:
        raise UserError("--attention: of one SENTENCE and its best translation: give one")
    if not file.endswith(FIGURES):
        raise UserError(f"--attention {file}: give a name in {', '.join(FIGURES)}")
    if not Path(file).absolute().parent.is_dir():
        raise UserError(f"--attention {file}: no such folder: make it first")


def _warn_of_unknown(run: Run, sentences: Sequence[str], warned: set[str]) -> None:
    """Print, once each, the characters that the vocabulary lacks."""
    if new := [letter for letter in run.unknown(sentences) if letter not in warned]:
        warned.update(new)
        letters = " ".join(map(repr, new))
        print(f"seqzoo: not in the vocabulary: {letters}", file=sys.stderr, flush=True)
