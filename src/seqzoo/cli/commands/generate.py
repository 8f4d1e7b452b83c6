"""`seqzoo generate`: continue a prompt."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from seqzoo.cli.loading import load_run
from seqzoo.cli.parser import add_cache, add_run, amount, count, number


def add(parser: ArgumentParser) -> None:
    parser.description = (
        "Continue a prompt, token by token. A state that grows keeps task.seq_len tokens."
    )
    add_run(parser)
    parser.add_argument(
        "--prompt", default="\n", help="what the text begins with (default: a new line)"
    )
    parser.add_argument("--tokens", type=count, default=300, help="how many (default: 300)")
    parser.add_argument(
        "--temperature", type=amount, default=0.8, help="0: the likeliest token (default: 0.8)"
    )
    parser.add_argument("--top-k", type=count, help="sample among the K likeliest tokens")
    parser.add_argument(
        "--top-p",
        type=number(float, 1e-9, 1),
        help="among the fewest tokens that have probability P together",
    )
    parser.add_argument(
        "--seed", type=number(int, 0, 2**63 - 1), help="the same seed gives the same text"
    )
    add_cache(parser)


def run(options: Namespace) -> None:
    run = load_run(options, "generate")
    names = ("temperature", "top_k", "top_p", "seed")
    pieces = run.stream(
        options.prompt, options.tokens, **{name: getattr(options, name) for name in names}
    )
    first = next(pieces)  # a wrong prompt is refused before anything is printed
    print(options.prompt.lstrip("\n") + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
