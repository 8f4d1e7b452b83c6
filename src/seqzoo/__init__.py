"""Sequence models as state machines, ``forward(x, state) -> (y, state)``, and a command that trains
them.

`build` makes a model, `train` trains one, `load` reads a run back; see each one's docstring.
"""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from seqzoo.cli.train import train
    from seqzoo.errors import UserError
    from seqzoo.models.zoo import build
    from seqzoo.runs.run import Run, load
    from seqzoo.state import nbytes

__all__ = ["Run", "UserError", "build", "load", "nbytes", "train"]
_MODULES = {
    "Run": "seqzoo.runs.run",
    "UserError": "seqzoo.errors",
    "build": "seqzoo.models.zoo",
    "load": "seqzoo.runs.run",
    "nbytes": "seqzoo.state",
    "train": "seqzoo.cli.train",
}


def __getattr__(name: str) -> _typing.Any:
    """Torch is loaded when something needs it, not by ``import seqzoo``."""
    if name not in _MODULES:
        raise AttributeError(f"module 'seqzoo' has no attribute {name!r}")
    return getattr(_importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
