"""What `--out` names."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from seqzoo.errors import UserError


def new_path(out: str) -> Path:
    """A path where nothing is yet.

    Raises:
        UserError: there is something, or a file where a folder would have to be.
    """
    path = Path(out).absolute()
    if path.exists():
        raise UserError(f"--out {out}: exists already: give a new name")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file: give a name elsewhere")
    return Path(out)


def dated(kind: str) -> Path:
    """A folder named by the time, below runs/."""
    return Path(f"runs/{kind}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
