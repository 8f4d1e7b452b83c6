"""The help of `train`, `bench`, `exam` and `info`: choices and keys, as the YAML files and the
constructors declare them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from seqzoo.bench import plan
from seqzoo.cli.checks import TRAINER
from seqzoo.cli.compose import GROUPS, NAMED
from seqzoo.config import files
from seqzoo.config.schema import Declaration, declared
from seqzoo.config.values import choices, shown
from seqzoo.exam import plan as exam_plan
from seqzoo.models import zoo
from seqzoo.tasks import declaration as task_declaration
from seqzoo.training.tables import path_of

TRAIN = """\
seqzoo train [-m] [--cfg job] [KEY=VALUE ...]: train a model of the zoo on a task.

  seqzoo train model=gru task=charlm trainer.max_seconds=60
  seqzoo train task.path=my.txt task.tokenizer=bpe optim=muon
  seqzoo train -m model=rnn,lstm,transformer task.seq_len=64,256

  -m               train with each combination of comma-separated values; also
                   trainer.seed=1..5
  --cfg job        print the configuration and leave; also --cfg all|hydra, --info, --resolve
  --config-dir D   a folder with further YAML files, in groups as below; -cn NAME: its NAME.yaml
  resume=auto      go on with the newest interrupted run that fits; with -m: skip what is finished
  resume=RUN       go on with that run; trainer.max_steps=2000 extends a finished one
  hydra.run.dir=D  the run directory (default: runs/TASK/MODEL/TIME)
"""
BENCH = """\
seqzoo bench [-m] [--cfg job] [KEY=VALUE ...]: speed, memory and state against sequence length.

  seqzoo bench models=[lstm,transformer] bench.lengths=64..4096
  seqzoo bench bench.modes=[decode] bench.lengths=[128,8192] model.n_layers=2

  -m               a bench for each combination of comma-separated values
  --cfg job        print the configuration and leave; also --cfg all|hydra, --info, --resolve
  --config-dir D   a folder with further YAML files: D/model/NAME.yaml is the model NAME
  models=          all, a name, or a list
  model.KEY=       for every model that has the key
  hydra.run.dir=D  the directory of the results (default: runs/bench/TIME)

Afterwards: seqzoo dashboard, or open report.html; seqzoo compare A B compares two benches.
"""
EXAM = """\
seqzoo exam [--cfg job] [KEY=VALUE ...]: what several models can learn, and what it costs.

  seqzoo exam
  seqzoo exam models=[lstm,gla,hybrid] exam.abilities=[recall,parity] exam.seeds=3
  seqzoo exam models=all exam.text=my.txt hydra.run.dir=runs/exam/all

  --cfg job        print the configuration and leave; also --cfg all|hydra, --info, --resolve
  --config-dir D   a folder with further YAML files: D/model/NAME.yaml is the model NAME
  models=          all, a name, or a list
  model.KEY=       for every model that has the key
  hydra.run.dir=D  the directory of the results (default: runs/exam/TIME); an exam that was
                   interrupted goes on there, and cells that are finished are not run again

Each cell is a seqzoo train of its own. An ability is a file of configs/ability:
{abilities}.
Afterwards: open report.html; seqzoo dashboard; seqzoo compare A B compares two exams.
"""
INFO = """\
seqzoo info [RUN | KEY=VALUE ...]: parameters, FLOPs a token and state bytes of a model.

  seqzoo info model=transformer model.dim=256
  seqzoo info runs/charlm/lstm/2026-01-31_12-00-00

Keys are those of `seqzoo train --help`."""


def declarations(config: Mapping[str, Any]) -> dict[str, Declaration]:
    """What the keys of each section allow, for the choices of a configuration."""
    name = {key: config[key].get("name") for key in config if key not in NAMED}
    found = {
        "model": zoo.declaration(name["model"]),
        "architecture": declared(zoo.ARCHITECTURES[name["architecture"]]),
        "task": task_declaration(name["task"]),
        "optim": declared(path_of("optim", name["optim"])),
        "schedule": declared(path_of("schedule", name["schedule"])),
        "trainer": declared(TRAINER),
    }
    for section in NAMED:
        for choice in config[section]:
            found[f"{section}.{choice}"] = declared(path_of(section, choice))
    return found


def train_help(config: Mapping[str, Any]) -> str:
    """Every choice, and every key with its value, meaning and allowed values."""
    config = {
        key: config[key] for key in config if isinstance(config[key], dict) and key != "hydra"
    }
    lines = [TRAIN]
    for group in GROUPS:
        names = textwrap.wrap(", ".join(files.names(group)), 78, break_on_hyphens=False)
        lines.append(f"  {group + '=':<14} {names[0] if names else ''}")
        lines += [" " * 17 + more for more in names[1:]]
    lines.append("\nKeys of these choices; give another model=NAME or task=NAME to see its keys.")
    for section, declaration in declarations(config).items():
        group, _, choice = section.partition(".")
        values = (config[group].get(choice) or {}) if choice else config[group]
        name = choice or values.get("name", "default")
        lines += section_help(section, files.comments(group, name), values, declaration)
    return "\n".join(lines)


def bench_help(values: Mapping[str, Any]) -> str:
    """The help of `seqzoo bench`."""
    comments = files.comments("bench", "default")
    return BENCH + "\n".join(section_help("bench", comments, values, declared(plan.SETTINGS)))


def exam_help(values: Mapping[str, Any]) -> str:
    """The help of `seqzoo exam`."""
    abilities = textwrap.fill(", ".join(files.names("ability")), 95)
    comments = files.comments("exam", "default")
    section = section_help("exam", comments, values, declared(exam_plan.SETTINGS))
    return EXAM.format(abilities=abilities) + "\n".join(section)


def section_help(
    section: str,
    comments: tuple[str, Mapping[str, str]],
    values: Mapping[str, Any],
    declaration: Declaration,
) -> list[str]:
    """A section's keys: value, then the file's comment, then the choices that it does not name."""
    title, meanings = comments
    choice = f"{section}={values['name']}" if "name" in values else section
    lines = ["", *textwrap.wrap(f"{choice}   {title}", 100, break_on_hyphens=False)]
    for key, value in values.items():
        if key == "name":
            continue
        meaning = meanings.get(key, "")
        allowed = [shown(each) for each in choices(declaration.keys.get(key)) if each is not None]
        if unnamed := [each for each in allowed if each not in meaning]:
            meaning += f" ({', '.join(unnamed)})"
        begin = f"  {section}.{key}={shown(value)}".ljust(36)
        text = textwrap.wrap(meaning, 62) or [""]
        lines.append(f"{begin} {text[0]}".rstrip())
        lines += [" " * 37 + more for more in text[1:]]
    return lines
