"""What is refused before torch is loaded: sections, keys, values, and folders that cannot be
written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seqzoo.cli.compose import NAMED, SECTIONS
from seqzoo.config import files, moved
from seqzoo.config.schema import check, check_complete, check_keys, declared
from seqzoo.config.values import check_device, shown
from seqzoo.errors import UserError, nearest
from seqzoo.models.zoo import ARCHITECTURES, check_architecture, check_model, full_name
from seqzoo.tasks import check_fit, check_task
from seqzoo.training.tables import path_of

TRAINER = "seqzoo.training.settings:TrainerSettings"
OTHER = ("resume", "plugins", "hydra")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration of `seqzoo train` that cannot run.

    Raises:
        UserError: one line about the first thing that is wrong.
    """
    _check_sections(config)
    for section in ("model", "architecture", "task"):
        known = files.defaults(section, full_name(config[section]["name"]))
        check_complete(known, config[section], f"{section}.")
    check_model(config["model"])
    _check_keys_of_architecture(config["architecture"])
    check_architecture(config["architecture"], config["model"])
    check_task(config["task"])
    check_fit(config)
    _check_section("trainer", config["trainer"], "default", TRAINER, "trainer.")
    check_device("trainer.device", config["trainer"]["device"])
    for section in ("optim", "schedule"):
        name = config[section]["name"]
        _check_section(section, config[section], name, path_of(section, name), f"{section}.")
    for section in NAMED:
        for name, keys in config[section].items():
            path = path_of(section, name)
            _check_section(section, keys or {}, name, path, f"{section}.{name}.")


def _check_sections(config: Mapping[str, Any]) -> None:
    for key in config:
        if key not in (*SECTIONS, *OTHER):
            moved.refuse_moved(key, shown(config[key]))
            keys = (
                f"{section}.{name}" for section in SECTIONS for name in config.get(section) or ()
            )
            raise UserError(f"{key}: no such key{nearest(key, (*SECTIONS, 'resume', *keys))}")
    for section in SECTIONS:
        values = config.get(section)
        name = "" if section in (*NAMED, "trainer") else None  # what stands for a name there
        if not isinstance(values, dict) or not isinstance(values.get("name", name), str):
            raise UserError(f"{section}: give a name: {', '.join(files.names(section))}")
        for key, value in values.items():
            if section not in NAMED:
                moved.refuse_moved(f"{section}.{key}", shown(value))
            elif not isinstance(value, dict | None):
                raise UserError(f"{section}.{key}={shown(value)}: give {section}.{key}.KEY=VALUE")


def _check_section(
    section: str, values: Mapping[str, Any], name: str, path: str, where: str
) -> None:
    """Refuse a key that the file of a choice lacks, a key left out, and a value that the
    constructor at `path` does not allow."""
    known = files.defaults(section, name)
    check_keys(values, {*known, "name"}, where)
    check_complete(known, {"name": name, **values}, where)
    check(declared(path), values, where)


def _check_keys_of_architecture(values: Mapping[str, Any]) -> None:
    """Refuse a key that another architecture has, by the name of that one."""
    having = {name: files.defaults("architecture", name) for name in ARCHITECTURES}
    for key in values:
        others = [name for name, keys in having.items() if key in keys]
        if others and values["name"] not in others:
            raise UserError(
                f"architecture.{key}: no such key of architecture={values['name']}: it is one of "
                f"architecture={' or '.join(others)}"
            )


def check_folder(wanted: str) -> None:
    """Refuse a run directory that cannot be made, or has no name."""
    if not wanted:
        raise UserError("hydra.run.dir or hydra.sweep.dir is empty: give a folder, or leave it out")
    folder = Path(wanted).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=existing))
    except OSError:
        raise UserError(
            f"{wanted}: cannot write in {existing}: run elsewhere, or give another hydra.run.dir"
        ) from None
