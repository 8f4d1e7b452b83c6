"""From overrides to configurations, by Hydra: the only file that composes them.

Every configuration of a sweep is composed and checked before torch is loaded; then Hydra itself
makes the directories and calls the job, with the launcher and the sweeper that were chosen.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from seqzoo.config import files, moved, plugins
from seqzoo.config.combinations import corpus_or_files
from seqzoo.config.values import quoted, shown
from seqzoo.errors import UserError, unknown
from seqzoo.models.zoo import one_width

NAMED = ("logger", "hook")  # sections with a section inside for each choice, by its name
SECTIONS = ("model", "architecture", "task", "optim", "schedule", "trainer", *NAMED)
SEED, MOST_SEEDS = "trainer.seed", 1000
GROUPS = (*(section for section in SECTIONS if section != "trainer"), "experiment")


def parse(texts: Sequence[str], *, multirun: bool = False) -> list[Any]:
    """The overrides, read by Hydra's own parser.

    Raises:
        UserError: text that is no override, a key that has moved, several values without `-m`, a
            corpus beside a file.
    """
    written_out = [_seeds(re.sub(r"^~(logger|hook)$", r"\1=[]", text)) for text in texts]
    overrides = [_parse_one(text) for text in written_out]
    for text, override in zip(texts, overrides, strict=True):
        key = override.key_or_group
        given = override.input_line.partition("=")[2]
        moved.refuse_moved(key, given)
        if override.is_sweep_override() and not multirun:
            listed = "" if key == SEED else f", or give a list, {text.partition('=')[0]}=[{given}]"
            raise UserError(f"{text}: several values: add -m to run with each of them{listed}")
        if override.is_delete():
            if key in SECTIONS:
                raise UserError(f"{text}: every run has one {key}: leave it out, or give a name")
            continue
        if key in (*SECTIONS, "experiment") and not override.is_sweep_override():
            _check_choice(text, override)
        _use_what_is_named(key, override.value())
    # A file goes before the corpus of a recipe, and not before one that is given with it.
    single = {o.key_or_group: o.value() for o in overrides if not o.is_sweep_override()}
    corpus_or_files({key: single.get(f"task.{key}") for key in ("corpus", "path")}, "task.")
    return overrides


def refuse_model(overrides: Sequence[Any]) -> None:
    """Refuse `model=` where a command takes several models."""
    for override in overrides:
        if override.key_or_group == "model":
            given = override.input_line.partition("=")[2]
            raise UserError(f"model={given}: give models={given}; model.KEY=VALUE sets a key")


def _check_choice(text: str, override: Any) -> None:
    """Refuse a section without the name of a choice."""
    section, value = override.key_or_group, override.value()
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        if section in NAMED:
            raise UserError(f"{text}: give a list of names; {section}=[] for none")
        if section == "experiment":
            raise unknown(section, shown(value), files.names(section))
        example = f"{section}={files.names(section)[0]}"
        raise UserError(f"{text}: every run has one {section}: give a name, such as {example}")


def _use_what_is_named(key: str, value: Any) -> None:
    """The folders and the plugins that an override names, or the recipe that it chooses."""
    if key == "hydra.searchpath":
        add_search_path(_listed(key, value))
    elif key == "experiment" and value in files.names("experiment"):
        _use_what_is_named("plugins", files.values("experiment", value).get("plugins"))
    elif key == "plugins":
        plugins.use(_listed(key, value))


def _listed(key: str, value: Any) -> list[str]:
    """A name, a list of names, or null, as a list."""
    if isinstance(value, str):
        return [value]
    if value is not None and not isinstance(value, list):
        raise UserError(f"{key}={shown(value)}: give a list, such as {key}=[NAME]")
    return [str(name) for name in value or ()]


def _seeds(text: str) -> str:
    """`trainer.seed=1..3` as `trainer.seed=1,2,3`; any other override as it is.

    Raises:
        UserError: a range that is empty, or too long for a sweep.
    """
    key, equals, value = text.partition("=")
    if key.lstrip("+") != SEED or ".." not in value:
        return text
    seeds: list[str] = []
    for part in value.split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST_SEEDS:
            raise UserError(
                f"{text}: give FIRST..LAST, such as {SEED}=1..5, of at most {MOST_SEEDS:,} seeds"
            )
        seeds += map(str, range(first, last + 1))
    return f"{key}{equals}{','.join(seeds)}"


def _parse_one(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"\+{0,2}[\w./@]+", key):
            raise UserError(
                f"{text}: not KEY=VALUE, such as model=lstm or models=[lstm,gru]: "
                "see --help of train, bench or info"
            ) from None
        # Text that Hydra's grammar has other uses for, such as ~/my.txt, is taken as it is.
        return OverridesParser.create().parse_override(f"{key}={quoted(value)}")


def add_search_path(entries: Iterable[str]) -> None:
    """Have our own reading of YAML files see what `hydra.searchpath` adds."""
    for entry in entries:
        scheme, _, place = entry.partition("://")
        if scheme == "file":
            files.add_folder(Path(place), "hydra.searchpath")
        elif scheme == "pkg":
            try:
                spec = find_spec(place)
            except ModuleNotFoundError:
                spec = None
            if spec is None or not spec.submodule_search_locations:
                raise UserError(f"hydra.searchpath: {entry}: no such package: install it")
            files.add_folder(Path(spec.submodule_search_locations[0]))


def compose(overrides: Sequence[Any], name: str = "train") -> list[dict[str, Any]]:
    """The configuration of each run of a sweep, or of the one run, with Hydra's own directories
    under `hydra`.

    A sweep whose values only its sweeper knows (`interval`, Optuna) is composed without them.

    Raises:
        UserError: what Hydra finds wrong, in one line.
    """
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    register_search_path()
    composed: list[Any] = []
    try:
        with initialize_config_dir(str(files.CONFIGS), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            for texts in _combinations(overrides, loader):
                composed.append(_plain(hydra_compose(name, texts, return_hydra_config=True)))
                _one_width(texts, composed[-1])
    except MissingConfigException as error:
        group, _, missing = (error.missing_cfg_file or "").rpartition("/")
        if not group:
            folders = ", ".join(map(str, files.folders()))
            raise UserError(f"--config-name {missing}: no such file in {folders}") from None
        names = files.names(group) or loader.get_group_options(group)  # ours, or Hydra's own
        raise unknown(group, missing, names) from None
    except (
        *(HydraException, OmegaConfBaseException),
        *(yaml.YAMLError, OSError, TypeError, ValueError),  # of a broken file, or of a list of 1
    ) as error:
        raise _in_our_words(error, overrides, name) from None
    return composed


def _one_width(texts: Sequence[str], config: Mapping[str, Any]) -> None:
    """Refuse a width that is given beside a number of parameters; that of a recipe is replaced."""
    model = config.get("model")
    given = any(text.lstrip("+").startswith("model.dim=") for text in texts)
    if given and isinstance(model, Mapping) and model.get("parameters") is not None:
        raise one_width(model.get("dim"), model["parameters"])


def _in_our_words(error: Exception, overrides: Sequence[Any], name: str) -> UserError:
    """The refusal of a request for which Hydra raised an error."""
    reason = " ".join(str(error).split())
    if match := re.search("Could not delete.*'(.*?)'", reason):
        return UserError(f"~{match[1]}: there is none to remove: see `seqzoo {name} --cfg all`")
    if match := re.match("Could not override '(.*?)'", reason):
        section, choice, *_ = *re.split("[./]", match[1]), ""
        if section in NAMED:
            add = f"add {section}=[{choice}]"
            return UserError(f"{match[1]}: this run has no {section} {choice}: {add}")
        return UserError(f"{match[1]}: no such key: see `seqzoo {name} --cfg all`")
    given = " ".join(override.input_line for override in overrides)
    return UserError(f"{given}: {reason}: see `seqzoo {name} --help`")


def _plain(cfg: Any) -> dict[str, Any]:
    """Our sections as plain dictionaries, and of Hydra's only the directories."""
    from omegaconf import OmegaConf

    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    plain: Any = OmegaConf.to_container(own, resolve=True)
    plain["hydra"] = {kind: {"dir": cfg.hydra[kind].dir} for kind in ("run", "sweep")}
    return dict(plain)


def _combinations(overrides: Sequence[Any], loader: Any) -> Iterator[list[str]]:
    """The overrides of each run. An unknown key is added, so that our own check refuses it; a key
    of a logger or hook is not, so that Hydra refuses it where that is not chosen."""
    choices: list[list[str]] = []
    for override in overrides:
        override.config_loader = loader
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            continue
        if override.is_sweep_override():
            values = list(override.sweep_string_iterator())
        else:
            values = [override.input_line.partition("=")[2]]
        if override.is_delete():
            choices.append([override.input_line])
            continue
        if not (override.is_hydra_override() or files.names(key) or _of_named(key)):
            key = "++" + key.lstrip("+")
        choices.append([f"{key}={value}" for value in values])
    return map(list, product(*choices))


def text_for_hydra(override: Any, name: str = "train") -> str:
    """An override as Hydra itself takes it: a key of one family's layers in a hybrid is added; of
    `bench` and `exam`, which have the keys of several models, any key of a model."""
    text: str = override.input_line
    added = "model.layers." if name == "train" else "model."
    return f"++{text}" if override.get_key_element().startswith(added) else text


def _of_named(key: str) -> bool:
    """Whether a key is one that a logger or hook has."""
    section, _, rest = key.partition(".")
    choice, _, inner = rest.partition(".")
    known = section in NAMED and choice in files.names(section)
    return known and inner in files.defaults(section, choice)


def print_yaml(configs: Iterable[Mapping[str, Any]]) -> None:
    """Print configurations, without Hydra's part."""
    import yaml

    own = ({key: value for key, value in each.items() if key != "hydra"} for each in configs)
    texts = (yaml.safe_dump(each, sort_keys=False, allow_unicode=True) for each in own)
    print(*texts, sep="---\n", end="")


def print_instead(
    options: Namespace,
    overrides: Sequence[Any],
    configs: Sequence[Mapping[str, Any]],
    name: str,
    without_hydra: str | None = None,
) -> bool:
    """Print what `--cfg` or `--info` asks for; whether one of them was given.

    Args:
        configs: what is printed where Hydra cannot.
        without_hydra: what was given that makes it so, such as `-m`.

    Raises:
        UserError: what Hydra alone can print, where it cannot.
    """
    if not (options.cfg or options.info):
        return False
    if without_hydra is None:
        texts = [text_for_hydra(override, name) for override in overrides]
        run_hydra(lambda _: None, options, texts, name)  # which then calls no job
        return True
    if options.cfg != "job":
        with_ = f"{without_hydra} with --info or --cfg hydra|all"
        raise UserError(f"{with_}: leave {without_hydra} out, or give --cfg job")
    if options.package:
        leave = f"leave it out with {without_hydra}, or leave {without_hydra} out"
        raise UserError(f"--package {options.package}: {leave}")
    print_yaml(configs)
    return True


def run_hydra(
    job: Callable[[Any], Any],
    options: Namespace,
    texts: Sequence[str],
    name: str,
) -> Any:
    """Have Hydra make the directories and call `job` once, or for each run of a sweep.

    Raises:
        UserError: Hydra, its launcher or its sweeper refuses the request.
        Exception: what a job raised, after all jobs of the sweep.
    """
    import hydra
    from hydra.errors import HydraException

    register_search_path()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # --info replaces them, for the whole process
    before, sys.argv = sys.argv, [f"seqzoo {name}", *_flags(options), *texts]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else it prints the traceback itself and exits
    try:
        main = hydra.main(
            version_base="1.3",
            config_path=str(files.CONFIGS),
            config_name=options.config_name or name,
        )
        return main(job)()
    except HydraException as error:
        given, reason = " ".join(options.overrides), " ".join(str(error).split())
        raise UserError(f"{given}: {reason}") from None
    finally:
        sys.argv = before
        root.handlers[:] = handlers
        root.setLevel(level)


def _flags(options: Namespace) -> list[str]:
    """The flags as Hydra takes them."""
    flags = ["--multirun"] if options.multirun else []
    for name in ("cfg", "package", "info"):
        if value := getattr(options, name):
            flags += [f"--{name}", value]
    return [*flags, "--resolve"] if options.resolve else flags


def register_search_path() -> None:
    """Have Hydra search the folders of plugins and of `--config-dir` after ours."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class Folders(SearchPathPlugin):  # type: ignore[misc]
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in files.folders()[1:]:
                search_path.append("seqzoo", f"file://{folder}")

    known = Plugins.instance().discover(SearchPathPlugin)
    if not any(kind.__qualname__ == Folders.__qualname__ for kind in known):
        Plugins.instance().register(Folders)
