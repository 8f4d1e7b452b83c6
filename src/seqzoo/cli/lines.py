"""Standard input as batches of lines."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from itertools import islice

from seqzoo.errors import UserError

BATCH = 512  # lines at once, unless a person types them


def standard_input() -> Iterator[list[str]]:
    """Its lines without their ends, in batches; one by one from a terminal.

    Raises:
        UserError: it is not UTF-8.
    """
    size = 1 if sys.stdin.isatty() else BATCH
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # whatever the locale is
    lines = (line.rstrip("\r\n") for line in sys.stdin)
    try:
        while batch := list(islice(lines, size)):
            yield batch
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is not {error.encoding} at byte {error.start}: convert it first"
        ) from None
