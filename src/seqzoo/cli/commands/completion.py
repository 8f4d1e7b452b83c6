"""`seqzoo completion`: tab completion for a shell."""

from __future__ import annotations

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"))
    parser.add_argument("--line", help=argparse.SUPPRESS)  # typed so far: print what may follow


def run(options: argparse.Namespace) -> None:
    from seqzoo.cli import completion

    if options.line is None:
        print(completion.script(options.shell), end="")
    else:
        print(*completion.candidates(options.line), sep="\n")
