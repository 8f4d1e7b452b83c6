"""The one exception for a request that cannot be met, and how a message about a name ends; which
errors mean that there is no memory."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

MAX_LISTED = 30  # names in a message; of more, only the nearest is shown


class UserError(Exception):
    """A wrong request. The message is one line: what was given, what is allowed, what to change.

    The command line prints it without a traceback and exits with status 2.
    """


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory left: torch raises a RuntimeError with one of these
    phrases in its message."""
    phrases = ("allocate", "out of memory")
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)


def nearest(given: str, allowed: Iterable[str], most: float = MAX_LISTED) -> str:
    """The end of a message about an unknown name: `; did you mean 'lstm'? allowed: gru, lstm`."""
    names = sorted(set(allowed))
    last_part = [name for name in names if name.endswith(f".{given}")]
    close = last_part or difflib.get_close_matches(given, names, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ";"
    if len(names) > most:
        return f"{guess} see `seqzoo train --help` for every key"
    return f"{guess} allowed: {', '.join(names) or 'none'}"


def unknown(key: str, given: str, allowed: Iterable[str], also: str = "") -> UserError:
    """The refusal of a name: `model=lstn: no such model; did you mean 'lstm'? ...`; `also` ends
    it."""
    what = key.rpartition(".")[2]
    return UserError(f"{key}={given}: no such {what}{nearest(given, allowed, math.inf)}{also}")
