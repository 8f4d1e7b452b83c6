"""What an exam measures: its settings, whose defaults and meanings stand in
configs/exam/default.yaml, and its cells. Loads no torch, so that a wrong request is refused at
once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from seqzoo.bench.plan import model_names, refuse_parameters, row_keys
from seqzoo.config import files, schema
from seqzoo.config.values import (
    Count,
    Described,
    Device,
    Flag,
    Positive,
    Seconds,
    Text,
    check_device,
    quoted,
    shown,
)
from seqzoo.errors import UserError, nearest
from seqzoo.tasks import declared_metrics, metric

SETTINGS = "seqzoo.exam.plan:ExamSettings"  # as `declared` reads it
LONGER = ", longer"  # ends the column of longer examples than were trained
Rates = Annotated[list[Positive], Described("a list of learning rates: [0.001,0.004]")]


@schema.checked()
@dataclass(frozen=True, kw_only=True)
class ExamSettings:
    """The `exam` section of a configuration, as it was given.

    Raises:
        UserError: a value that is not allowed.
    """

    abilities: list[Text]
    text: Text | None
    parameters: Count | None
    rates: Rates
    seeds: Count
    steps: Count | None
    seconds: Seconds | None
    language_seconds: Seconds
    device: Device
    speed: Flag
    speed_length: Count
    speed_rounds: Count
    workers: Count | None

    def __post_init__(self) -> None:
        for key in ("abilities", "rates"):
            given = getattr(self, key)
            if not given:
                raise UserError(f"exam.{key}=[]: give at least one")
            if len(set(given)) < len(given):
                raise UserError(f"exam.{key}={shown(given)}: one is there twice: give each once")
        if self.steps is None and self.seconds is None:
            raise UserError("exam.steps=null exam.seconds=null: give at least one of them")


@schema.checked()
@dataclass(frozen=True, kw_only=True)
class Ability:
    """What a cell tests, as configs/ability/NAME.yaml says it.

    Attributes:
        name: of the column of its score.
        train: what `seqzoo train` is given, such as `task=mqar`.
        score: the metric of the column, which also chooses the learning rate.
        longer: the metric of a second column, on longer examples than were trained; or None.
        curve: of metrics by size, such as `accuracy_by_length`, of `val/` and `test/`; or None.
        chance: what guessing scores, in percent; in recall it is one of the values that were read.
            None where it is not one number.
        timed: whether seconds end a cell, and not steps: it then has the machine for itself.
        effort: factor of `exam.steps` and of the seconds.
    """

    name: Text
    train: list[Text]
    score: Text
    longer: Text | None
    curve: Text | None
    chance: Positive | None
    timed: Flag
    effort: Count

    @property
    def columns(self) -> dict[str, str]:
        """Each column's name, and its metric."""
        both = {self.name: self.score, f"{self.name}{LONGER}": self.longer}
        return {name: key for name, key in both.items() if key is not None}


@dataclass(frozen=True)
class Cell:
    """One training run of an exam."""

    model: str
    ability: str
    rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.ability}  {self.model}  rate {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What an exam measures.

    Attributes:
        models: keys that are given to each model, by its name.
        abilities: in the order of the columns.
    """

    models: dict[str, dict[str, Any]]
    abilities: tuple[Ability, ...]
    settings: ExamSettings

    def cells(self, ability: Ability) -> list[Cell]:
        """The first seed of every model, with each learning rate; models take turns."""
        return [
            Cell(model, ability.name, rate, 1)
            for rate in self.settings.rates
            for model in self.models
        ]

    def further(self, cell: Cell) -> list[Cell]:
        """The other seeds of a cell."""
        return [replace(cell, seed=seed) for seed in range(2, self.settings.seeds + 1)]

    def overrides(self, cell: Cell) -> list[str]:
        """What `seqzoo train` is given for a cell."""
        settings, ability = self.settings, self._ability(cell.ability)
        given = [f"model={cell.model}", *ability.train]
        if "task=charlm" in ability.train and settings.text is not None:
            given.append(f"task.path={quoted(settings.text)}")
        given += [f"model.{key}={shown(value)}" for key, value in self.models[cell.model].items()]
        if settings.parameters is not None:
            given.append(f"model.parameters={settings.parameters}")
        seconds = settings.language_seconds if ability.timed else settings.seconds
        if (steps := self.steps(cell.ability)) is not None:
            given.append(f"trainer.max_steps={steps}")
        given.append(f"trainer.max_seconds={shown(seconds and ability.effort * seconds)}")
        given.append(f"trainer.device={settings.device}")
        return [*given, f"optim.lr={cell.rate}", f"trainer.seed={cell.seed}"]

    def steps(self, ability: str) -> int | None:
        """The steps of a cell; None where seconds alone end it."""
        one = self._ability(ability)
        steps = self.settings.steps
        return None if one.timed or steps is None else one.effort * steps

    def _ability(self, name: str) -> Ability:
        return next(each for each in self.abilities if each.name == name)


def make(cfg: Mapping[str, Any]) -> Plan:
    """The plan of a configuration with the sections of configs/exam.yaml.

    Raises:
        UserError: an unknown name or key, or a value that is not allowed.
    """
    schema.check_keys(cfg, ["models", "model", "exam"])
    settings = ExamSettings(**schema.whole_section("exam", SETTINGS, cfg))
    check_device("exam.device", settings.device)
    models = _models(model_names(cfg["models"]), cfg["model"] or {}, settings.parameters)
    return Plan(models, tuple(map(ability, settings.abilities)), settings)


def ability(name: str) -> Ability:
    """An ability by its name.

    Raises:
        UserError: there is no such file, and the nearest name is offered; or its score is not one
            of its task.
    """
    known = files.names("ability")
    if name not in known:
        raise UserError(f"exam.abilities: no such ability as {name}{nearest(name, known)}")
    one = Ability(**{"name": name, **files.defaults("ability", name)})
    task = next((text[5:] for text in one.train if text.startswith("task=")), None)
    metrics = [each.name for each in declared_metrics(task)]
    for key, form in (("score", "val/{}"), ("longer", "test/{}"), ("curve", "{}_by_length")):
        wanted = getattr(one, key)
        allowed = [form.format(each) for each in metrics]
        if key == "curve":
            allowed += [f"{each}_by_pairs" for each in metrics]
        if wanted is not None and wanted not in allowed:
            raise UserError(f"ability {name}: {key}: {wanted}: give one of {', '.join(allowed)}")
    return one


def _models(
    names: Iterable[str], overrides: Mapping[str, Any], parameters: int | None
) -> dict[str, dict[str, Any]]:
    """Of each model, those of the given keys that it has. A hybrid has at least the layers of its
    pattern."""
    refuse_parameters(overrides, "an exam", "exam.parameters")
    models: dict[str, dict[str, Any]] = {}
    known: set[str] = set()
    for name in names:
        defaults = row_keys(name, parameters, "exam.parameters")
        known |= defaults.keys()
        models[name] = {key: value for key, value in overrides.items() if key in defaults}
        if isinstance(given := models[name].get("n_layers"), int):
            pattern = models[name].get("pattern", defaults.get("pattern", ()))
            models[name]["n_layers"] = max(given, len(pattern))
    schema.check_keys(overrides, known, "model.")
    return models


def unit(column_metric: str) -> tuple[str, bool]:
    """The unit of a metric such as `val/accuracy`, and whether higher is better."""
    found = metric(column_metric)
    return found.unit, found.higher_is_better
