"""The vocabulary of the RWKV World models: lines such as `257 "\\n\\n" 2`."""

from __future__ import annotations

import ast
from pathlib import Path

from seqzoo.errors import UserError


def read(path: Path) -> dict[int, bytes]:
    """The bytes of each token by its id.

    Raises:
        UserError: a file of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text: give the RWKV World vocabulary") from None
    tokens = {}
    for number, line in enumerate(lines, 1):
        try:
            index, rest = line.split(" ", 1)
            literal, size = rest.rsplit(" ", 1)
            token = ast.literal_eval(literal)
            token = token.encode() if isinstance(token, str) else token
            if len(token) != int(size):
                raise ValueError
            tokens[int(index)] = token
        except (ValueError, SyntaxError, AttributeError, TypeError):
            raise UserError(
                f"{path}, line {number}: not `ID LITERAL LENGTH`: give the RWKV World vocabulary"
            ) from None
    return tokens
