"""seqzoo: sequence models as state machines, ``forward(x, state) -> (y, state)``, and a command
that trains them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqzoo.errors import UserError
    from seqzoo.models.zoo import build
    from seqzoo.runs.run import Run, load
    from seqzoo.state import nbytes

__all__ = ["Run", "UserError", "build", "load", "nbytes"]
_WHERE = {
    "Run": "seqzoo.runs.run",
    "UserError": "seqzoo.errors",
    "build": "seqzoo.models.zoo",
    "load": "seqzoo.runs.run",
    "nbytes": "seqzoo.state",
}


def __getattr__(
    name: str,
) -> Any:  # torch is loaded when something needs it, not by `seqzoo --help`
    if name not in _WHERE:
        raise AttributeError(f"module 'seqzoo' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
