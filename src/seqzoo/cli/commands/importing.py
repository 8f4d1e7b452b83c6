"""`seqzoo import`: a run made of an official checkpoint."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from seqzoo.cli.loading import new_path
from seqzoo.errors import UserError


def add(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .pth or .safetensors file")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run directory to make")
    parser.add_argument(
        "--vocabulary", help="its vocabulary: the RWKV World file, or a tokenizer.json"
    )


def run(options: Namespace) -> None:
    out = new_path(options.out)
    for option in (options.file, options.vocabulary):
        if option is not None and not Path(option).is_file():
            raise UserError(f"{option}: no such file")
    from seqzoo.exchange.rwkv import import_rwkv

    vocabulary = Path(options.vocabulary) if options.vocabulary else None
    keys = import_rwkv(Path(options.file), out, vocabulary)
    print(f"{out}: " + ", ".join(f"{key} {value}" for key, value in keys.items()))
