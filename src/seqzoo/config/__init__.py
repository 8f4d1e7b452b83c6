"""Configuration without Hydra or torch: where the YAML files are, what they hold, what is allowed.

The YAML files are the one place for default values; this file is the one place for ranges.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from seqzoo.errors import UserError

_HERE = Path(__file__).resolve()
CONFIGS = next(
    p for p in (_HERE.parents[1] / "configs", _HERE.parents[3] / "configs") if p.is_dir()
)

ANY_SIZE = (0, math.inf)
COUNTS = frozenset(  # whole numbers from 1 up
    "dim n_layers n_heads max_len seq_len batch_size batch_tokens grad_accumulation "
    "max_steps eval_every checkpoint_every sample_every sample_tokens limit n_pairs "
    "val_pairs test_pairs vocab_size eval_pairs log_every val_max_chars parameters tokens "
    "decode_batch_size rounds threads expand state_size mix_rank decay_rank rate_rank value_rank "
    "gate_rank n_kv_heads chunk encoder_layers source_heads average_checkpoints longest "
    "beam".split()
)
RANGES: dict[str, tuple[float, float]] = {  # closed at both ends; others: any number from 0 up
    **dict.fromkeys(COUNTS, (1, math.inf)),
    "dropout": (0, 0.95),
    "mlp_ratio": (1e-3, math.inf),
    "val_fraction": (1e-6, 0.9),
    "beta1": (0, 0.9999),
    "beta2": (0, 0.99999),
    "lr": (1e-12, 100.0),
    "lr_end": (0, 1),
    "grad_clip": (1e-9, math.inf),
    "label_smoothing": (0, 0.99),
    "scheduled_sampling": (0, 1),
    "max_seconds": (1e-3, math.inf),
    "seconds": (1e-3, math.inf),
    "max_step_seconds": (1e-3, math.inf),
    "max_epochs": (1e-6, math.inf),
    "reset": (0, 1),
    "seed": (0, 2**63 - 1),
}
CACHE_POLICIES = ("window", "sinks", "tova", "h2o", "random")  # of seqzoo.ops.bounded_cache
CACHE_READINGS = ("tokens", "prompt")
MOST_SLOTS = 65_536  # of a bounded cache, which is made whole at once
SINKS = 4  # tokens that the policy of that name never drops
NULLABLE = tuple(
    "max_steps max_seconds max_epochs eval_every checkpoint_every sample_every grad_clip "
    "parameters tokens threads decay_rank rate_rank value_rank gate_rank n_kv_heads cache "
    "encoder_layers average_checkpoints".split()
)


# ---- the files


@cache
def _read(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def defaults(group: str, name: str, path: str | None = None) -> dict[str, Any]:
    """The group's values in ``configs/GROUP/NAME.yaml``, or in another file."""
    values = _read(Path(path) if path else CONFIGS / group / f"{name}.yaml")
    section = values.get(group)  # a model's file also says how it likes to be trained
    return section if isinstance(section, dict) else values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections within sections as one: `model.dim`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        section = isinstance(value, Mapping)
        out |= flat(value, f"{prefix}{key}.") if section else {prefix + key: value}
    return out


def names(group: str) -> list[str]:
    """The choices of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def comments(group: str, name: str) -> tuple[str, dict[str, str]]:
    """What ``configs/GROUP/NAME.yaml`` says of itself in its first lines, and of each key."""
    title: list[str] = []
    keys: dict[str, str] = {}
    for line in (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        before, _, said = line.partition("# ")
        if match := re.match(r" *(\w+):", before):
            keys.setdefault(match[1], said)
        elif keys:  # a comment that goes on
            keys[list(keys)[-1]] += f" {said}"
        elif not said.startswith("@package"):
            title.append(said)
    return " ".join(title), keys


# ---- what is allowed


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'lstm'? allowed: ...`, to end a message about an unknown name."""
    allowed = sorted(set(allowed))
    whole = [name for name in allowed if name.endswith(f".{word}")]
    close = whole or difflib.get_close_matches(word, allowed, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ";"
    if len(allowed) > 30:
        return f"{guess} see `seqzoo train --help` for every key"
    return f"{guess} allowed: {', '.join(allowed) or 'none'}"


def no_such_key(key: str, known: Iterable[str]) -> UserError:
    """The refusal of a key, where others are known: `dim`, or `model.dim` as the key itself."""
    known, bare = list(known), key.rpartition(".")[2]
    if key == f"model.{bare}" and bare in defaults("head", "encoder_decoder"):
        return UserError(f"{key}: a key of head=encoder_decoder: give that too")
    word = key if any("." in name for name in known) else bare
    return UserError(f"{key}: no such key{nearest(word, known)}")


def check(
    section: str, values: Mapping[str, Any], *, choices: Mapping[str, Sequence[Any]] = {}
) -> None:
    """Refuse values out of range or not among the choices.

    Raises:
        UserError: one line naming the key, the value, what is allowed.
    """
    for key, value in values.items():
        where = f"{section}.{key}"
        if key in choices:
            if value not in choices[key]:
                allowed = ", ".join(map(shown, choices[key]))
                raise UserError(f"{where}={shown(value)}: choose one of {allowed}")
        elif _is_number(value):
            low, high = RANGES.get(key, ANY_SIZE)
            if not math.isfinite(value) or not low <= value <= high:
                allowed = f"from {low:g}" + (f" to {high:g}" if high < math.inf else " up, finite")
                raise UserError(f"{where}={value}: give a number {allowed}")
        elif key in RANGES and value is not None:
            raise UserError(f"{where}={shown(value)}: give a number")


def check_keys(section: str, values: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Refuse a key the reference has not, and a value of another type, as text for a number.

    Where the reference is None, the key's name tells: counts, other numbers with a range, words.
    """
    for key, value in values.items():
        if key not in reference:
            raise no_such_key(f"{section}.{key}", reference)
        expected = reference[key]
        if value is None and (expected is None or key in NULLABLE):
            continue
        needed = _needed(key, expected, value)
        if needed:
            raise UserError(f"{section}.{key}={shown(value)}: give {needed}")


def _needed(key: str, expected: Any, value: Any) -> str:
    """What the key takes, if the value is not of that type."""
    example = "" if expected is None else f", such as {shown(expected)}"
    if isinstance(expected, bool):
        return "" if isinstance(value, bool) else "true or false"
    whole = isinstance(expected, int) and key not in RANGES
    if whole or key in COUNTS or key == "seed":
        if _is_number(value) and isinstance(value, float) and value.is_integer():
            example = f", such as {value:.0f}"
        return "" if type(value) is int else f"a whole number{example}"
    if isinstance(expected, float) or key in RANGES:
        return "" if _is_number(value) else f"a number{example}"
    if isinstance(expected, str) or expected is None:
        return (
            "" if isinstance(value, str) else f"text{example}: quote what reads as something else"
        )
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value as one types it: `null`, `true`, `"\\n"`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) and value.isprintable() else repr(value)


def check_device(option: str, name: Any) -> None:
    """Refuse a device that this torch cannot have, without loading it.

    Raises:
        UserError: not the name of a device, or CUDA with a torch that is built without.
    """
    from importlib.metadata import version

    if not re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", str(name)):
        raise UserError(f"{option}={name}: no such device: use auto, cpu, cuda or cuda:N")
    if str(name).startswith("cuda") and version("torch").endswith("+cpu"):
        raise UserError(
            f"{option}={name}: not on this machine, whose torch is built for CPUs: use cpu or auto"
        )


def cache_policy(where: str, text: str) -> tuple[str, int, str]:
    """`tova:256` or `tova:256:prompt` as a policy, its size and how prompts are read.

    Raises:
        UserError: anything else; `where` is what it was given as.
    """
    name, _, rest = text.partition(":")
    size, _, reading = rest.partition(":")
    reading = reading or CACHE_READINGS[0]
    given = re.fullmatch("[1-9][0-9]{0,4}", size) and int(size) <= MOST_SLOTS
    if name in CACHE_POLICIES and given and reading in CACHE_READINGS:
        if name == "sinks" and int(size) <= SINKS:
            raise UserError(
                f"{where}={text}: keeps the first {SINKS} tokens and needs more: try sinks:64"
            )
        return name, int(size), reading
    raise UserError(
        f"{where}={text}: give POLICY:SIZE, such as tova:256, or POLICY:SIZE:prompt; SIZE up to "
        f"{MOST_SLOTS}; policies: {', '.join(CACHE_POLICIES)}"
    )


# ---- run directories


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run directory; {} while there is none."""
    try:
        return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def vocabulary_sizes(folder: Path) -> dict[str, int]:
    """Of a run directory's model: `vocab_size`, and `source_vocab_size` where sources have their
    own."""
    described = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    return {key: described[key] for key in ("vocab_size", "source_vocab_size") if key in described}


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run directory.

    Raises:
        UserError: the folder is no run directory.
    """
    import yaml

    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"{folder}: no run directory (no config.yaml in it): give one that seqzoo train made"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    sections = ("model", "task", "trainer")
    if not isinstance(config, Mapping) or not all(
        isinstance(config.get(section), Mapping) for section in sections
    ):
        raise UserError(
            f"{path}: not the configuration of a run: give a directory that seqzoo train made"
        )
    return dict(config)
