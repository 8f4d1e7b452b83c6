"""Hybrids: models whose layers are of several families, in a pattern that is repeated.

    pattern: [gla, gla, local]
    layers: {local: {name: transformer, cache: window:64}}

An entry of the pattern is a family, or a name that `layers` gives to a family with keys of its own.
This module loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from seqzoo.config import files
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Described, Text, shown
from seqzoo.errors import UserError, nearest

LAYERS = f"{__name__}:check_pattern"
OF_THE_MODEL = ("dim", "n_layers", "dropout", "tie_embeddings")  # one value for all layers
# Of attention layers whose values are mixed by value_residual: one value for all of them.
OF_VALUES = ("value_residual", "n_heads", "n_kv_heads")
Scalar = int | float | bool | str | None
Layers = Annotated[
    dict[str, dict[str, Scalar]], Described("model.layers.ENTRY.KEY=VALUE for an entry")
]
Keys = Mapping[str, Any]


def entries(keys: Keys) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each entry of a hybrid's pattern once: its name, the keys that `layers` gives it, and all
    keys of its family. A family's own defaults give way to the keys that it shares with the hybrid,
    and these to `layers`. Of any other model: nothing.

    Raises:
        UserError: an entry that is no family, keys of an entry that is not in the pattern, or keys
            that one layer alone cannot have.
    """
    if "pattern" not in keys:
        return
    check_pattern(**{key: keys[key] for key in ("pattern", "layers", "n_heads")})
    attention: dict[str, Keys] = {}
    for entry in dict.fromkeys(keys["pattern"]):
        own = dict(keys["layers"].get(entry) or {})
        name = own.pop("name", entry)
        if name not in files.names("model"):
            known = ", ".join(files.names("model"))
            raise UserError(
                f"model.pattern={shown(keys['pattern'])}: no such model as {name}"
                f"{nearest(name, known.split(', '))}"
            )
        defaults = files.defaults("model", name)
        shared = {key: value for key, value in keys.items() if key in defaults and key != "name"}
        whole = {**defaults, **shared, **own}
        if whole.get("position") in ("learned", "sinusoidal"):
            raise UserError(
                f"model.layers.{entry}.position={whole['position']}: a hybrid has no embedding of "
                "positions: give rope or none"
            )
        if "value_residual" in whole:
            attention[entry] = {key: whole[key] for key in OF_VALUES}
        yield entry, own, whole
    if any(keys["value_residual"] for keys in attention.values()):
        _check_values(attention)


def _check_values(attention: Mapping[str, Keys]) -> None:
    """Refuse entries whose values cannot be mixed with those of the first entry."""
    (first, theirs), *others = attention.items()
    for entry, keys in others:
        for key in OF_VALUES:
            if keys[key] != theirs[key]:
                raise UserError(
                    f"model.layers.{entry}.{key}={shown(keys[key])}: values of all attention "
                    f"are mixed by value_residual: give {shown(theirs[key])}, as {first} has"
                )


@checked()
def check_pattern(*, pattern: list[Text], layers: Layers, n_heads: Count) -> None:
    """Refuse a pattern and keys of its entries that do not fit each other.

    Args:
        pattern: the family of each layer, repeated to n_layers.
        layers: by entry of the pattern, keys of its family; `name` is that family.
        n_heads: of every family that has heads.
    """
    if not pattern:
        raise UserError("model.pattern=[]: give the family of each layer: [gla,gla,transformer]")
    for entry, own in layers.items():
        if entry not in pattern:
            raise UserError(
                f"model.layers.{entry}: not in model.pattern={shown(pattern)}: put it there, or "
                "begin with model=hybrid, whose layers have no keys of their own"
            )
        for key in OF_THE_MODEL:
            if key in own:
                raise UserError(
                    f"model.layers.{entry}.{key}: one for all layers: give it as model.{key}"
                )


def merged(defaults: Keys, keys: Keys) -> dict[str, Any]:
    """A model's keys with some replaced; of `layers`, those of each entry on their own."""
    whole = {**defaults, **keys}
    if "layers" in defaults and isinstance(keys.get("layers"), Mapping):
        before = defaults["layers"]
        new = {
            entry: {**before.get(entry, {}), **own} if isinstance(own, Mapping) else own
            for entry, own in keys["layers"].items()
        }
        whole["layers"] = {**before, **new}
    return whole
