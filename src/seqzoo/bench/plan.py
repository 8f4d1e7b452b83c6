"""Which points a bench measures. Loads no torch, so that a wrong request is refused at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seqzoo.bench.settings import BenchSettings, Mode
from seqzoo.config import files, schema
from seqzoo.config.values import shown
from seqzoo.errors import UserError
from seqzoo.models.zoo import check_model, families, family, full_name


@dataclass(frozen=True)
class Point:
    """One measurement: a mode of a model at a length, `batch_size` sequences at once."""

    model: str
    mode: Mode
    length: int
    batch_size: int


@dataclass(frozen=True)
class Plan:
    """What a bench measures.

    Attributes:
        models: the configuration of each model by its name; the width is solved for later.
    """

    models: dict[str, dict[str, Any]]
    settings: BenchSettings

    def points(self) -> list[Point]:
        """The points of one round, in the order in which they are measured.

        Lengths ascend, and models take turns, so that a busy machine slows all models alike.
        """
        return [
            Point(model, mode, length, self.settings.batch_size_at(mode, length))
            for length in self.settings.lengths_in_order()
            for mode in self.settings.modes_in_order()
            for model in self.models
        ]

    def record(self) -> dict[str, Any]:
        """The settings as bench.json holds them."""
        return {**asdict(self.settings), "modes": self.settings.modes_in_order()}


def make(cfg: Mapping[str, Any]) -> Plan:
    """The plan of a configuration with the sections of configs/bench.yaml.

    Raises:
        UserError: an unknown name or key, or a value that is not allowed.
    """
    declaration = schema.declared("seqzoo.bench.settings:BenchSettings")
    schema.check_keys(cfg, ["models", "model", "bench"])
    section = {**files.defaults("bench", "default"), **(cfg.get("bench") or {})}
    schema.check_keys(section, declaration.keys, "bench.")
    schema.check(declaration, section, "bench.")
    settings = BenchSettings(**section)
    schema.check_device("bench.device", settings.device)
    longest = settings.lengths_in_order()[-1]
    return Plan(_models(_names(cfg["models"]), cfg["model"] or {}, longest), settings)


def _names(given: Any) -> list[str]:
    names = list(families()) if given == "all" else [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names:
        raise UserError(f"models={shown(given)}: give all, a name, or a list: [lstm,transformer]")
    return [full_name(name) for name in map(str, names)]


def _models(
    names: Sequence[str], overrides: Mapping[str, Any], longest: int
) -> dict[str, dict[str, Any]]:
    """Each model's keys: its own defaults, and those of the overrides that it has."""
    models: dict[str, dict[str, Any]] = {}
    for name in names:
        family(name)  # refuses an unknown one
        defaults = files.defaults("model", name)
        keys = {**defaults, **{k: v for k, v in overrides.items() if k in defaults}, "name": name}
        check_model(keys)
        if keys.get("position") in ("learned", "sinusoidal") and longest > keys["max_len"]:
            raise UserError(
                f"bench.lengths up to {longest} are more than the positions of {name}'s "
                f"model.max_len={keys['max_len']}: try model.max_len={longest}"
            )
        models[name] = keys
    schema.check_keys(overrides, {k for keys in models.values() for k in keys}, "model.")
    return models
