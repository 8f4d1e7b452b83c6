"""Which points are measured. Loads no torch, so that a wrong request is refused at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqzoo import config
from seqzoo.errors import UserError
from seqzoo.models.zoo import ALIASES, FAMILIES, check_model, family

MODES = ("train", "prefill", "decode")


@dataclass(frozen=True)
class Point:
    """One measurement: a mode of a model at a length, `batch_size` sequences at once."""

    model: str
    mode: str
    length: int
    batch_size: int


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        models: the whole configuration of each model by its name; the width is not solved for yet.
        lengths: ascending.
        settings: the `bench` section of the configuration.
    """

    models: dict[str, dict[str, Any]]
    lengths: list[int]
    settings: dict[str, Any]

    def points(self) -> list[Point]:
        """Those of one round, in the order in which they are measured: lengths ascending, and the
        models in turns, so that what the machine does meanwhile meets all of them alike."""
        return [
            Point(model, mode, length, self._batch_size(mode, length))
            for length in self.lengths
            for mode in MODES
            if mode in self.settings["modes"]
            for model in self.models
        ]

    def _batch_size(self, mode: str, length: int) -> int:
        if mode == "decode":
            return int(self.settings["decode_batch_size"])
        if self.settings["tokens"] is not None:
            return int(self.settings["tokens"] // length)
        return int(self.settings["batch_size"])


def make(cfg: Mapping[str, Any]) -> Plan:
    """Check a configuration of `configs/bench.yaml`'s shape.

    Raises:
        UserError: an unknown name or key, a value that is not allowed.
    """
    for key in cfg:
        if key not in ("models", "model", "bench"):
            known = [f"bench.{name}" for name in config.defaults("bench", "default")]
            raise config.no_such_key(key, ["models", *known])
    settings = dict(cfg["bench"])
    plain = {key: value for key, value in settings.items() if key not in ("lengths", "modes")}
    config.check_keys("bench", plain, config.defaults("bench", "default"))
    config.check("bench", plain, choices={"dtype": ("auto", "float32", "bfloat16")})
    config.check_device("bench.device", settings["device"])
    settings["modes"] = _words("bench.modes", settings["modes"], MODES)
    lengths = parse_lengths(settings["lengths"])
    if settings["tokens"] is not None and settings["tokens"] < lengths[-1]:
        raise UserError(
            f"bench.tokens={settings['tokens']} is less than one sequence of "
            f"bench.lengths={shown(settings['lengths'])}: try bench.tokens={lengths[-1]}"
        )
    return Plan(_models(cfg["models"], cfg["model"] or {}, lengths[-1]), lengths, settings)


def parse_lengths(given: Any) -> list[int]:
    """`64..1024` as 64, 128, ..., 1024, where the last one is always there; or a list; ascending.

    Raises:
        UserError: anything else.
    """
    if isinstance(given, str) and (match := re.fullmatch(r"(\d+)\.\.(\d+)", given)):
        first, last = int(match[1]), int(match[2])
        if 1 <= first <= last:
            doubled = [first << i for i in range((last // first).bit_length())]
            return sorted({*doubled, last})
    lengths = [given] if type(given) is int else given
    if isinstance(lengths, Sequence) and not isinstance(lengths, str) and lengths:
        if all(type(n) is int and n >= 1 for n in lengths):
            return sorted(set(lengths))
    raise UserError(
        f"bench.lengths={shown(given)}: give FIRST..LAST, such as 64..8192, or a list of whole "
        "numbers from 1 up, such as [64,1024]"
    )


def _models(given: Any, overrides: Mapping[str, Any], longest: int) -> dict[str, dict[str, Any]]:
    names = list(FAMILIES) if given == "all" else [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names:
        raise UserError(f"models={shown(given)}: give all, a name, or a list: [lstm,transformer]")
    models: dict[str, dict[str, Any]] = {}
    for name in map(str, names):
        entry, name = family(name), ALIASES.get(name, name)
        defaults = config.defaults("model", name, entry.yaml)
        keys = {**defaults, **{k: v for k, v in overrides.items() if k in defaults}, "name": name}
        check_model(keys)
        if keys.get("position") in ("learned", "sinusoidal") and longest > keys["max_len"]:
            raise UserError(
                f"bench.lengths up to {longest} are more than the positions of {name}'s "
                f"model.max_len={keys['max_len']}: try model.max_len={longest}"
            )
        models[name] = keys
    known = {key for name in models for key in models[name]} - {"name"}
    for key in overrides:
        if key not in known:
            raise config.no_such_key(f"model.{key}", known)
    return models


def _words(key: str, given: Any, allowed: Sequence[str]) -> list[str]:
    words = [given] if isinstance(given, str) else given
    if not words or any(word not in allowed for word in words):
        raise UserError(f"{key}={shown(given)}: choose among {', '.join(allowed)}")
    return [word for word in allowed if word in words]


def shown(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(str, value)) + "]"
    return config.shown(value)
