"""Tab completion: what may follow a line that is not finished. Loads neither Hydra nor torch."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterable, Mapping
from pathlib import Path

from seqzoo import config

GROUPS = ("model", "task", "head", "experiment")

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


def candidates(line: str, parsers: Mapping[str, ArgumentParser]) -> list[str]:
    """The words the last one of a line, which may be empty, can become; `parsers` by command."""
    *before, word = line.split(" ")
    before = [text for text in before if text][1:]
    if not before:
        found: Iterable[str] = parsers
    elif before[0] in ("train", "info"):
        found = _overrides(before[1:], word)
    elif before[0] == "bench":
        found = _bench(word)
    elif before[0] in parsers:
        found = _arguments(parsers[before[0]], before, word)
    else:
        found = ()
    return sorted({text for text in found if text.startswith(word)})


def _arguments(parser: ArgumentParser, before: list[str], word: str) -> Iterable[str]:
    """Options, their choices, names of models, run directories, files."""
    actions = parser._actions
    flags = {flag: action for action in actions for flag in action.option_strings}
    if before[-1] in flags and flags[before[-1]].choices:
        return flags[before[-1]].choices
    if word.startswith("-"):
        return [flag for flag, action in flags.items() if action.help != SUPPRESS]
    if before[0] == "verify":
        return config.names("model")
    if choices := [c for a in actions if not a.option_strings and a.choices for c in a.choices]:
        return choices
    several = any(action.nargs == "+" for action in actions)
    if any(action.metavar == "RUN" for action in actions) and (len(before) == 1 or several):
        return _runs(word) or _paths(word)
    return _paths(word)


def _overrides(before: list[str], word: str) -> Iterable[str]:
    """Flags, groups, keys of the model and the task that the line has, and values."""
    chosen = {"model": "lstm", "task": "charlm", "trainer": "default", "head": "decoder_only"}
    chosen |= dict(text.split("=", 1) for text in before if text.count("=") == 1)
    keys = {
        f"{group}.{key}": value
        for group in ("model", "task", "trainer")
        if (name := _first_file(group, chosen[group])) is not None
        for key, value in config.defaults(group, name).items()
        if key != "name"
    }
    if chosen["head"] in config.names("head"):
        keys |= {f"model.{key}": v for key, v in config.defaults("head", chosen["head"]).items()}
    key, equals, value = word.partition("=")
    if word.startswith("-"):
        return ("-m", "--multirun", "--cfg", "--help")
    if not equals:
        whole = [f"{name}=" for name in (*GROUPS, "resume", *keys)]
        sections = [f"{name}." for name in ("model", "task", "trainer")]
        return whole if "." in word else [n for n in (*whole, *sections) if "." not in n[:-1]]
    head = f"{key}=" + value[: value.rfind(",") + 1]  # of several values, the last is completed
    return [head + text for text in _values(key, value.rpartition(",")[2], keys)]


def _bench(word: str) -> Iterable[str]:
    """Models, which are a list or one, and the keys of a bench."""
    from seqzoo.models.zoo import FAMILIES

    keys = {f"bench.{key}": value for key, value in config.defaults("bench", "default").items()}
    key, equals, value = word.partition("=")
    if word.startswith("-"):
        return ("-m", "--multirun", "--cfg", "--help")
    if not equals:
        return ("models=", *(f"{name}=" for name in keys))
    if key == "models":
        head = value[: max(value.rfind(","), value.rfind("[")) + 1]
        return [f"models={head}{name}" for name in ("all", *FAMILIES)]
    return [f"{key}={text}" for text in _values(key, value, keys)]


def _values(key: str, begun: str, keys: dict[str, object]) -> Iterable[str]:
    from seqzoo.models.zoo import CHOICES, FAMILIES
    from seqzoo.tasks import TASKS

    if key in GROUPS:
        return config.names(key)
    if key == "resume":
        return ["auto", *(_runs(begun) or _paths(begun))]
    section, _, name = key.partition(".")
    for choices in (CHOICES, *(entry.choices for entry in (*FAMILIES.values(), *TASKS.values()))):
        if key in keys and name in choices and section in ("model", "task"):
            return map(config.shown, choices[name])
    if name.endswith(("path", "source", "target")):
        return _paths(begun)
    if isinstance(keys.get(key), bool):
        return ("true", "false")
    return [config.shown(keys[key])] if key in keys else ()


def _first_file(group: str, name: str) -> str | None:
    """The file of a choice, or of the first of several; an alias has no keys of its own to show."""
    from seqzoo.models.zoo import ALIASES

    name = name.partition(",")[0]
    name = ALIASES.get(name, name) if group == "model" else name
    return name if name in config.names(group) else None


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
