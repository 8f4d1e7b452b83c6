"""`seqzoo verify`: the laws of the state protocol."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from seqzoo.errors import UserError, nearest
from seqzoo.models.zoo import families, family, full_name

COLUMNS = """\
Each number is the largest error found, in values and gradients. The columns:
  chunks      a text in pieces, the state carried, against the text at once
  causal      what an output depends on that comes after it
  definition  every fast form against the plain definition
  empty       no state against the paper's initial state
  purity      a state that was given, before and after its use
  batch       some rows of a state alone, against all rows together
  bounded     bytes of the state while more is read
"""


def add(parser: ArgumentParser) -> None:
    parser.epilog = COLUMNS
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names (default: all)")
    parser.add_argument(
        "--backend",
        metavar="FORM",
        help="the form to run of every operation that has it, such as native or chunked (default: "
        "the one that is chosen for the device and the length)",
    )


def run(options: Namespace) -> int:
    for given in options.models:
        if "=" in given.removeprefix("model="):
            raise UserError(
                f"{given}: verify takes names of models, each in all its variants, and no keys: "
                "give a name, such as lstm; --help lists the options"
            )
    names = [full_name(name.removeprefix("model=")) for name in options.models] or list(families())
    for name in names:
        family(name)
    from contextlib import nullcontext

    from seqzoo import ops
    from seqzoo.laws import verify
    from seqzoo.ops.native import library

    tables = ops.backends().values()
    forms = sorted({name for table in tables for name, form in table.items() if not form.rounded})
    if options.backend not in (None, *forms):
        raise UserError(
            f"--backend {options.backend}: no such form{nearest(options.backend, forms)}"
        )
    if options.backend == "native" and library() is None:
        raise UserError(
            "--backend native: there are no kernels in C++ here, for the reason above: install g++ "
            "if it is missing, or leave --backend out"
        )
    with ops.backend(options.backend) if options.backend else nullcontext():
        return 0 if verify(names) else 1
