"""Tab completion: what may follow an unfinished line. Loads neither Hydra nor torch."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from seqzoo.bench import plan as bench_plan
from seqzoo.cli import help as helps
from seqzoo.cli.compose import GROUPS, add_search_path
from seqzoo.cli.main import COMMANDS, command_parser
from seqzoo.config import files, plugins
from seqzoo.config.schema import declared
from seqzoo.config.values import choices, shown
from seqzoo.errors import UserError
from seqzoo.exam import plan as exam_plan
from seqzoo.models.zoo import full_name

CONFIG_DIR = ("--config-dir", "-cd")
MEASURED = {"bench": bench_plan.SETTINGS, "exam": exam_plan.SETTINGS}  # they measure models=
FLAGS: dict[str, tuple[str, ...]] = {"info": ("--config-dir", "--help")}
FLAGS["exam"] = (*FLAGS["info"], "--cfg", "--config-name", "--info")
FLAGS["train"] = FLAGS["bench"] = (*FLAGS["exam"], "-m", "--multirun")

# bash replaces what follows the last break character, which `=` usually is: the rest is taken off.
_SCRIPT = """\
_seqzoo() {
  local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
  local word="${line##* }"
  COMPREPLY=($(seqzoo completion bash --line="$line" 2>/dev/null))
  if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
  fi
  if [[ "${#COMPREPLY[@]}" -eq 1 && "${COMPREPLY[0]}" == *[=./] ]]; then
    compopt -o nospace 2>/dev/null
  fi
}
complete -F _seqzoo seqzoo
"""


def script(shell: str) -> str:
    """What a shell evaluates once."""
    zsh = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return zsh + _SCRIPT


def candidates(line: str) -> list[str]:
    """The words that the last word of a line, which may be empty, can become."""
    *before, word = line.split(" ")
    before = [text for text in before if text][1:]
    if not before:
        found: Iterable[str] = COMMANDS
    elif before[0] in FLAGS:
        _use_what_is_named(before[1:])
        if before[-1] in CONFIG_DIR:
            found = _paths(word)
        elif word.startswith("-"):
            found = FLAGS[before[0]]
        else:
            several = before[0] in MEASURED
            keys = _keys_of_section(before[0]) if several else _keys(before[1:])
            found = _overrides(("models",) if several else (*GROUPS, "resume"), keys, word)
    elif before[0] in COMMANDS:
        found = _arguments(command_parser(before[0]), before, word)
    else:
        found = ()
    return sorted({text for text in found if text.startswith(word)})


def _use_what_is_named(before: list[str]) -> None:
    """The plugins and the folders of YAML files that a line names; what is not there is passed
    over."""
    for text, following in pairwise((*before, "")):
        key, equals, rest = text.partition("=")
        listed = [each.strip("[]'\" ") for each in rest.split(",") if each.strip("[]'\" ")]
        with suppress(UserError):
            if key in CONFIG_DIR:
                files.add_folder(Path(rest if equals else following))
            elif key == "hydra.searchpath":
                add_search_path(listed)
            elif key == "plugins":
                plugins.use(listed)


def _arguments(parser: ArgumentParser, before: list[str], word: str) -> Iterable[str]:
    """Options, their choices, names of models, run directories, files."""
    actions = parser._actions
    flags = {flag: action for action in actions for flag in action.option_strings}
    if before[-1] in flags and (listed := flags[before[-1]].choices):
        return listed
    if word.startswith("-"):
        return [flag for flag, action in flags.items() if action.help != SUPPRESS]
    if before[0] == "verify":
        return files.names("model")
    if listed := [c for a in actions if not a.option_strings and a.choices for c in a.choices]:
        return listed
    several = any(action.nargs == "+" for action in actions)
    if any(action.metavar == "RUN" for action in actions) and (len(before) == 1 or several):
        return _runs(word) or _paths(word)
    return _paths(word)


def _overrides(
    groups: Iterable[str], keys: Mapping[str, tuple[Any, Any]], word: str
) -> Iterable[str]:
    """Groups, keys of the choices that the line has, and values."""
    key, equals, value = word.partition("=")
    if not equals:
        whole = [f"{name}=" for name in (*groups, *keys)]
        sections = [f"{section}." for section in dict.fromkeys(k.split(".")[0] for k in keys)]
        return whole if "." in word else [n for n in (*whole, *sections) if "." not in n[:-1]]
    last = max(value.rfind(","), value.rfind("[")) + 1  # of several values, the last is completed
    return [f"{key}={value[:last]}{text}" for text in _values(key, value[last:], keys)]


def _keys(before: list[str]) -> dict[str, tuple[Any, Any]]:
    """Each key that a line's choices have: its value, and its annotation."""
    chosen = {"model": "lstm", "task": "charlm", "architecture": "decoder_only"}
    chosen |= {"optim": "adamw", "schedule": "cosine", "trainer": "default"}
    for text in before:
        group, equals, name = text.partition("=")
        name = full_name(name.partition(",")[0])
        if equals and group in chosen and name in files.names(group):
            chosen[group] = name
    config = {group: files.defaults(group, name) for group, name in chosen.items()}
    config["trainer"].pop("name", None)
    found = helps.declarations({**config, "logger": {}, "hook": {}})
    return {
        f"{section}.{key}": (value, found[section].keys.get(key))
        for section, values in config.items()
        for key, value in values.items()
        if key != "name"
    }


def _keys_of_section(name: str) -> dict[str, tuple[Any, Any]]:
    """The keys of the section of `bench` or `exam`."""
    annotations = declared(MEASURED[name]).keys
    values = files.defaults(name, "default")
    return {f"{name}.{key}": (value, annotations.get(key)) for key, value in values.items()}


def _values(key: str, begun: str, keys: Mapping[str, tuple[Any, Any]]) -> Iterable[str]:
    if key in GROUPS:
        return files.names(key)
    if key == "models":
        return ["all", *files.names("model")]
    if key == "exam.abilities":
        return files.names("ability")
    if key == "resume":
        return ["auto", *(_runs(begun) or _paths(begun))]
    value, annotation = keys.get(key, (None, None))
    if listed := [each for each in choices(annotation) if each is not None]:
        return map(shown, listed)
    if key.endswith(("path", "source", "target")):
        return _paths(begun)
    return [shown(value)] if key in keys else ()


def _runs(begun: str) -> list[str]:
    """Run directories below `runs`."""
    found = (str(path.parent) for path in Path("runs").glob("**/config.yaml"))
    return [run for run in found if run.startswith(begun)]


def _paths(begun: str) -> list[str]:
    folder, slash, name = begun.rpartition("/")
    here = Path(folder + slash or ".").expanduser()
    if not here.is_dir():
        return []
    return [
        folder + slash + path.name + ("/" if path.is_dir() else "")
        for path in here.iterdir()
        if path.name.startswith(name) and (name or not path.name.startswith("."))
    ]
