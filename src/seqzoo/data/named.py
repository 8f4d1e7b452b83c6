"""Corpora by their names: the built-in ones, and those that plugins add."""

from collections.abc import Mapping
from typing import Any

from seqzoo.config.plugins import registered
from seqzoo.config.schema import accepted, load
from seqzoo.errors import unknown


def make_corpus(kind: str, builtin: Mapping[str, str], name: str, keys: Mapping[str, Any]) -> Any:
    """Call the function that a corpus' name stands for, with those of the keys that it takes.

    Args:
        kind: the field of `Plugin` with the corpora that plugins add.
        builtin: names and import paths of our own.

    Raises:
        UserError: no corpus of that name.
    """
    known = registered(kind, builtin)
    if name not in known:
        raise unknown("task.corpus", name, known, ", or owner/name of a hub data set")
    taken = accepted(known[name])
    return load(known[name])(**{key: value for key, value in keys.items() if key in taken})


def is_hub_name(kind: str, builtin: Mapping[str, str], name: str) -> bool:
    """Whether a corpus' name is `owner/name` of the hub."""
    return "/" in name and name not in registered(kind, builtin)
