"""The YAML files: where they are, and the values and comments in them. Needs neither Hydra nor
torch.

A value's default stands in the files and nowhere else; a comment behind it tells its meaning and
unit, and `--help` shows that comment. Files of plugins and of `--config-dir` stand beside ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from seqzoo.config import plugins
from seqzoo.errors import UserError, unknown

_HERE = Path(__file__).resolve()
CONFIGS = next(
    p for p in (_HERE.parents[1] / "configs", _HERE.parents[3] / "configs") if p.is_dir()
)
VARIABLE = "SEQZOO_CONFIG_DIRS"  # names further folders, for this process and those it starts
T = TypeVar("T")


def add_folder(folder: Path, option: str = "--config-dir") -> None:
    """Search a folder too, after ours: what `--config-dir` or `hydra.searchpath` names.

    Raises:
        UserError: it is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{option} {folder}: no such folder: give one with groups as configs/")
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys((*_added(), str(folder.resolve()))))


def folders() -> list[Path]:
    """Every folder of configuration files, in the order in which they are searched."""
    return [CONFIGS, *plugins.config_folders(), *map(Path, _added())]


def _added() -> list[str]:
    return [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]


def names(group: str) -> list[str]:
    """The choices of a group."""
    return sorted({path.stem for each in folders() for path in (each / group).glob("*.yaml")})


def find(group: str, name: str) -> Path:
    """The file of a choice.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    for each in folders():
        if (path := each / group / f"{name}.yaml").is_file():
            return path
    raise unknown(group, name, names(group))


def entry(group: str, name: str, table: Mapping[str, T]) -> T:
    """What a table has for a choice.

    Raises:
        UserError: nothing, though there may be a file of it; the nearest name is offered.
    """
    if name in table:
        return table[name]
    if name not in names(group):
        raise unknown(group, name, table)
    raise UserError(
        f"{group}={name}: {find(group, name)} is there, but no plugin in use has a {group} of that "
        "name: add plugins=[MODULE], the module of its plugin"
    )


def values(group: str, name: str) -> dict[str, Any]:
    """Everything in the file of a choice, as it is written."""
    return dict(_read(find(group, name)))


def defaults(group: str, name: str) -> dict[str, Any]:
    """The values of the group's section in the file of a choice, in the files of the same group
    that its defaults list names, and in train.yaml, whose keys every choice has."""
    own = values(group, name)
    bases = [each for each in own.pop("defaults", []) if isinstance(each, str)]
    for section in (group, name):  # a model's file has sections; a logger has one under its name
        inner = own.get(section)
        own = dict(inner) if isinstance(inner, dict) else own
    for base in bases:
        if base != "_self_":
            own = {**defaults(group, base), **own}
    return {**own, **{key: value for key, value in _shared(group).items() if key not in own}}


def _shared(group: str) -> dict[str, Any]:
    """The keys that every choice of a group has: those of its section in train.yaml."""
    section = _read(CONFIGS / "train.yaml").get(group)
    return dict(section) if isinstance(section, dict) else {}


@cache
def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}: correct it") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: no keys in it: write KEY: VALUE in each line")
    return found


def comments(group: str, name: str) -> tuple[str, dict[str, str]]:
    """The first lines of a choice's file, without Hydra's own, and the comment of each key, of
    those that every choice has too."""
    title, keys = _comments(find(group, name))
    if shared := _shared(group):
        of_all = _comments(CONFIGS / "train.yaml")[1]
        keys = {**{key: of_all[key] for key in shared}, **keys}
    return title, keys


def _comments(path: Path) -> tuple[str, dict[str, str]]:
    """The first lines of a file, and the comment of each of its keys."""
    title: list[str] = []
    keys: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        before, _, comment = line.partition("# ")
        if match := re.match(r" *(\w+):", before):
            keys.setdefault(match[1], comment)
        elif keys:  # a comment that goes on in the next line
            keys[list(keys)[-1]] += f" {comment}"
        elif not comment.startswith("@package"):
            title.append(comment)
    return " ".join(title), keys


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections within sections as one: `{"model.dim": 256, ...}`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        section = isinstance(value, Mapping)
        out |= flat(value, f"{prefix}{key}.") if section else {prefix + key: value}
    return out
