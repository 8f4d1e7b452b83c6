"""`seqzoo generate`: continue a prompt."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Annotated

from pydantic import Field

from seqzoo.cli.loading import load_run
from seqzoo.cli.parser import add_cache, add_run, value
from seqzoo.config.values import Amount, Count, Seed


def add(parser: ArgumentParser) -> None:
    parser.description = (
        "Continue a prompt, token by token. A state that grows keeps task.seq_len tokens."
    )
    add_run(parser)
    parser.add_argument(
        "--prompt", default="\n", help="what the text begins with (default: a new line)"
    )
    parser.add_argument("--tokens", type=value(Count), default=300, help="how many (default: 300)")
    parser.add_argument(
        "--temperature",
        type=value(Amount),
        default=0.8,
        help="0: the likeliest token (default: 0.8)",
    )
    parser.add_argument("--top-k", type=value(Count), help="sample among the K likeliest tokens")
    parser.add_argument(
        "--top-p",
        type=value(Annotated[float, Field(gt=0, le=1)]),
        help="among the fewest tokens that have probability P together",
    )
    parser.add_argument("--seed", type=value(Seed), help="the same seed gives the same text")
    for flag, what in (
        ("--weights", "the model's weights"),
        ("--kv-cache", "attention's keys and values of a long text"),
    ):
        parser.add_argument(
            flag,
            choices=("float32", "bfloat16", "int8"),
            default="float32",
            help=f"type in which each token reads {what}, on a CPU: fewer bytes are faster and "
            "less exact (default: float32)",
        )
    add_cache(parser)


def run(options: Namespace) -> None:
    run = load_run(options, "generate")
    names = ("temperature", "top_k", "top_p", "seed", "weights", "kv_cache")
    pieces = run.stream(
        options.prompt, options.tokens, **{name: getattr(options, name) for name in names}
    )
    first = next(pieces)  # a wrong prompt is refused before anything is printed
    print(options.prompt.lstrip("\n") + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
