"""Configuration without Hydra or torch: where the YAML files are, what values they hold, which values are allowed.

The YAML files are the one place for default values; this file is the one place for ranges.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from seqzoo.errors import UserError

_HERE = Path(__file__).resolve()
CONFIGS = next(p for p in (_HERE.parent / "configs", _HERE.parents[2] / "configs") if p.is_dir())

AT_LEAST_ONE = (1, math.inf)
ANY_SIZE = (0, math.inf)
NULLABLE = (
    "max_steps",
    "max_seconds",
    "max_epochs",
    "eval_every",
    "checkpoint_every",
    "sample_every",
    "grad_clip",
)
RANGES: dict[
    str, tuple[float, float]
] = {  # closed at both ends; what is not named may be any number from 0 up
    **dict.fromkeys(
        "dim n_layers n_heads max_len mlp_ratio seq_len batch_size batch_tokens grad_accumulation "
        "max_steps max_epochs eval_every checkpoint_every sample_every sample_tokens limit n_pairs val_pairs "
        "test_pairs vocab_size eval_pairs log_every val_max_chars".split(),
        AT_LEAST_ONE,
    ),
    "dropout": (0, 0.95),
    "val_fraction": (1e-6, 0.9),
    "temperature": ANY_SIZE,
    "beta1": (0, 0.9999),
    "beta2": (0, 0.99999),
    "lr": (1e-12, 100.0),
    "lr_end": (0, 1),
    "max_seconds": (1e-3, math.inf),
    "label_smoothing": (0, 0.9),
    "reset": (0, 1),
    "seed": (0, 2**63 - 1),
}


@cache
def _read(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text()) or {}


def defaults(group: str, name: str, path: str | None = None) -> dict[str, Any]:
    """The group's values in ``configs/GROUP/NAME.yaml``, or in another file."""
    values = _read(Path(path) if path else CONFIGS / group / f"{name}.yaml")
    return values.get(group, values)  # a model's file also says how it likes to be trained


def names(group: str) -> list[str]:
    """The choices of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'lstm'? (allowed: ...)`, to end a message about an unknown name."""
    allowed = sorted(set(allowed))
    close = difflib.get_close_matches(word, allowed, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{guess} allowed: {', '.join(allowed)}"


def check(
    section: str, values: Mapping[str, Any], *, choices: Mapping[str, Sequence[str]] = {}
) -> None:
    """Refuse values out of range or not among the choices.

    Raises:
        UserError: one line naming the key, the value, what is allowed.
    """
    for key, value in values.items():
        where = f"{section}.{key}"
        if key in choices:
            if value not in choices[key]:
                allowed = ", ".join(map(str, choices[key]))
                raise UserError(f"{where}={value}: choose one of {allowed}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = RANGES.get(key, ANY_SIZE)
            if not math.isfinite(value) or not low <= value <= high:
                allowed = f"from {low:g}" + (f" to {high:g}" if high < math.inf else " up, finite")
                raise UserError(f"{where}={value}: give a number {allowed}")
        elif key in RANGES and value is not None:
            raise UserError(f"{where}={value}: give a number")


def check_keys(section: str, values: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Refuse a key the reference has not, and a value of another type: text for a number, a fraction for a count.

    A reference of None says nothing about the type.
    """
    for key, value in values.items():
        if key not in reference:
            raise UserError(f"{section}.{key}: no such key{nearest(key, reference)}")
        expected = reference[key]
        if expected is None or value is None and key in NULLABLE:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = {
            bool: isinstance(value, bool),
            int: number and float(value).is_integer() if number and math.isfinite(value) else False,
            float: number,
            str: isinstance(value, str),
        }.get(type(expected), True)
        if not fits:
            what = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[
                type(expected)
            ]
            raise UserError(f"{section}.{key}={value}: give {what}, such as {expected}")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run directory.

    Raises:
        UserError: the folder is no run directory.
    """
    import yaml

    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except OSError:
        raise UserError(
            f"{folder}: no run directory (no config.yaml in it): give one that seqzoo train made"
        ) from None
    except yaml.YAMLError:
        config = None
    if not isinstance(config, Mapping) or not {"model", "task", "trainer"} <= set(config):
        raise UserError(
            f"{path}: not the configuration of a run: give a directory that seqzoo train made"
        )
    return dict(config)
