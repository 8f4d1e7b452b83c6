"""What a bench measures: its settings, of which the defaults and their meanings stand in
configs/bench/default.yaml, and its points. Loads no torch, so that a wrong request is refused at
once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from seqzoo.config import files, schema
from seqzoo.config.values import Count, Described, Device, Dtype, Flag, Seconds, check_device, shown
from seqzoo.errors import UserError
from seqzoo.models import hybrid
from seqzoo.models.zoo import check_model, families, full_name, keys_of

SETTINGS = "seqzoo.bench.plan:BenchSettings"  # as `declared` reads it
Mode = Literal["train", "prefill", "decode"]
MODES: tuple[Mode, ...] = ("train", "prefill", "decode")
Modes = Annotated[list[Mode] | Mode, Described("a list of some of train, prefill, decode")]
LENGTHS_FORM = "FIRST..LAST, such as 64..8192, or a list of whole numbers from 1 up: [64,1024]"
Lengths = Annotated[list[Count] | Count | str, Described(LENGTHS_FORM)]


@schema.checked()
@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The `bench` section of a configuration, as it was given.

    Raises:
        UserError: a value that is not allowed.
    """

    lengths: Lengths
    modes: Modes
    parameters: Count | None
    batch_size: Count
    tokens: Count | None
    decode_batch_size: Count
    vocab_size: Count
    rounds: Count
    seconds: Seconds
    max_step_seconds: Seconds
    device: Device
    dtype: Dtype
    threads: Count | None
    compile: Flag

    def __post_init__(self) -> None:
        if not self.modes_in_order():
            raise UserError(f"bench.modes={shown(self.modes)}: give some of {', '.join(MODES)}")
        longest = self.lengths_in_order()[-1]
        if self.tokens is not None and self.tokens < longest:
            raise UserError(
                f"bench.tokens={self.tokens} is less than one sequence of "
                f"bench.lengths={shown(self.lengths)}: try bench.tokens={longest}"
            )

    def modes_in_order(self) -> list[Mode]:
        """The modes to measure, in the order in which they are measured."""
        given = [self.modes] if isinstance(self.modes, str) else self.modes
        return [mode for mode in MODES if mode in given]

    def lengths_in_order(self) -> list[int]:
        """The lengths to measure, ascending, none twice."""
        return parse_lengths(self.lengths)

    def batch_size_at(self, mode: Mode, length: int) -> int:
        """Sequences that are read at once."""
        if mode == "decode":
            return self.decode_batch_size
        return self.batch_size if self.tokens is None else self.tokens // length


def parse_lengths(given: Lengths) -> list[int]:
    """`64..1024` as 64, 128, ..., 1024, in which the last length is always there; or a list.

    Raises:
        UserError: anything else.
    """
    if isinstance(given, str):
        match = re.fullmatch(r"(\d+)\.\.(\d+)", given)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if 1 <= first <= last:
            doubled = [first << i for i in range((last // first).bit_length())]
            return sorted({*doubled, last})
    elif lengths := [given] if isinstance(given, int) else given:
        return sorted(set(lengths))
    raise UserError(f"bench.lengths={shown(given)}: give {LENGTHS_FORM}")


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
    schema.check_keys(cfg, ["models", "model", "bench"])
    settings = BenchSettings(**schema.whole_section("bench", SETTINGS, cfg))
    check_device("bench.device", settings.device)
    longest = settings.lengths_in_order()[-1]
    overrides = cfg["model"] or {}
    if settings.parameters is not None and "dim" in overrides:
        raise UserError(
            f"model.dim={overrides['dim']}: bench.parameters={settings.parameters} gives the width "
            "of every model: give bench.parameters=null"
        )
    models = _models(model_names(cfg["models"]), overrides, longest, settings.parameters)
    return Plan(models, settings)


def model_names(given: Any) -> list[str]:
    """What `models=` names: all, a name, or a list; aliases as the names they stand for.

    Raises:
        UserError: something else.
    """
    names = list(families()) if given == "all" else [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names:
        raise UserError(f"models={shown(given)}: give all, a name, or a list: [lstm,transformer]")
    return [full_name(name) for name in map(str, names)]


def refuse_parameters(overrides: Mapping[str, Any], command: str, key: str) -> None:
    """Refuse `model.parameters` where a key of the command is that of all models."""
    if "parameters" in overrides:
        given = shown(overrides["parameters"])
        raise UserError(f"model.parameters={given}: in {command} it is {key}={given}")


def row_keys(name: str, parameters: int | None, key: str) -> dict[str, Any]:
    """The keys in the file of a model, without its number of parameters: that of all is `key`.

    Raises:
        UserError: as `keys_of`; or the file has such a number where `key` is null.
    """
    keys = keys_of(name)
    own = keys.pop("parameters")
    if own is not None and parameters is None:
        raise UserError(
            f"{files.find('model', name)}: model.parameters={own}, and {key}=null: give one number "
            f"for all models, {key}={own}, or model.dim in that file"
        )
    return keys


def _models(
    names: Sequence[str], overrides: Mapping[str, Any], longest: int, parameters: int | None
) -> dict[str, dict[str, Any]]:
    """Each model's keys: its own defaults, and those of the overrides that it has."""
    refuse_parameters(overrides, "a bench", "bench.parameters")
    models: dict[str, dict[str, Any]] = {}
    for name in names:
        defaults = row_keys(name, parameters, "bench.parameters")
        own = {k: v for k, v in overrides.items() if k in defaults}
        keys = hybrid.merged(defaults, {**own, "name": defaults["name"]})
        check_model(keys)
        if keys.get("position") in ("learned", "sinusoidal") and longest > keys["max_len"]:
            raise UserError(
                f"bench.lengths up to {longest} are more than the positions of {name}'s "
                f"model.max_len={keys['max_len']}: try model.max_len={longest}"
            )
        models[name] = keys
    schema.check_keys(overrides, {k for keys in models.values() for k in keys}, "model.")
    return models
