"""`seqzoo verify`: the laws of the state protocol."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from seqzoo.models.zoo import families, family, full_name


def add(parser: ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names (default: all)")


def run(options: Namespace) -> int:
    names = [full_name(name.removeprefix("model=")) for name in options.models] or list(families())
    for name in names:
        family(name)
    from seqzoo.laws import verify

    return 0 if verify(names) else 1
