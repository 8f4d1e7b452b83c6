"""The width at which a model has a given number of parameters: what makes models of different
families comparable."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import Any

import torch

from seqzoo.config import files
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.errors import UserError
from seqzoo.models import hybrid
from seqzoo.models.zoo import build, full_name


@checked()
def solved(keys: Mapping[str, Any], *, parameters: Count | None) -> dict[str, Any]:
    """Keys of `build` with the `dim` that gives about that number of parameters; as they are where
    it is None.

    Raises:
        UserError: as `solve_width`.
    """
    return dict(keys) if parameters is None else {**keys, "dim": solve_width(parameters, **keys)}


def solve_width(n_parameters: int, **keys: Any) -> int:
    """The width `dim` whose number of parameters is nearest to a number.

    Args:
        **keys: as `build` takes them; `dim` is ignored.

    Raises:
        UserError: the narrowest model has more than twice as many.
    """
    whole = hybrid.merged(files.defaults("model", full_name(keys["name"])), keys)
    heads = [
        whole.get("n_heads", 4),
        *(own.get("n_heads", 1) for _, _, own in hybrid.entries(whole)),
    ]
    unit = lcm(*(2 * n for n in heads), keys.get("source_heads", 1))  # heads of an even size

    def size(dim: int) -> int:
        with torch.device("meta"):
            return build(**{**keys, "parameters": None, "dim": dim}).n_parameters()

    low = high = unit
    if (smallest := size(unit)) > 2 * n_parameters:
        raise UserError(
            f"model.parameters={n_parameters}: {keys['name']} has {smallest:,} at its narrowest, "
            f"model.dim={unit}, with a vocabulary of {keys['vocab_size']:,}: give "
            f"model.parameters={smallest} or more, or a lower model.n_layers"
        )
    while size(high) < n_parameters:
        low, high = high, 2 * high
    while high - low > unit:
        middle = (low + high) // (2 * unit) * unit
        low, high = (middle, high) if size(middle) < n_parameters else (low, middle)
    return min(low, high, key=lambda dim: abs(size(dim) - n_parameters))


def off_by(found: int, wanted: int | None) -> str:
    """How far a number of parameters is from the one that was asked for, where it is more than a
    tenth: widths go by the size of a head."""
    share = found / (wanted or found) - 1
    return f" ({share:+.0%} from what was asked for)" if abs(share) > 0.1 else ""
