"""The command line: `main`, and the commands that Hydra configures, which no other file knows.

Whatever can be refused without torch is refused before it is loaded: names, keys, values, files.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from seqzoo import config
from seqzoo.cli import commands, launch
from seqzoo.errors import UserError

SECTIONS = ("model", "task", "trainer")
LIMITS = {"max_steps": "steps", "max_seconds": "train_seconds", "max_epochs": "epochs"}

TRAIN_HELP = """\
seqzoo train [-m] [--cfg job] [KEY=VALUE ...]: train a model of the zoo on a task.

  seqzoo train model=gru task=charlm trainer.max_seconds=60
  seqzoo train task.path=my.txt task.tokenizer=bpe
  seqzoo train -m model=rnn,lstm,transformer task.seq_len=64,256

  -m               train with each combination of comma-separated values
  --cfg job        print the configuration and leave
  resume=auto      go on with the newest unfinished run of this model and task
  resume=RUN       go on with that run; trainer.max_steps=2000 extends a finished one
  hydra.run.dir=D  the run directory (default: runs/TASK/MODEL/TIME)
"""
BENCH_HELP = """\
seqzoo bench [-m] [--cfg job] [KEY=VALUE ...]: speed, memory and state against sequence length.

  seqzoo bench models=[lstm,transformer] bench.lengths=64..4096
  seqzoo bench bench.modes=[decode] bench.lengths=[128,8192] model.n_layers=2

  -m               a bench for each combination of comma-separated values
  --cfg job        print the configuration and leave
  models=          all, a name, or a list
  model.KEY=       for every model that has the key
  hydra.run.dir=D  where it writes (default: runs/bench/TIME)

Afterwards: seqzoo dashboard, or open report.html; seqzoo compare A B holds two benches together.
"""
INFO_HELP = """\
seqzoo info [RUN | KEY=VALUE ...]: parameters, FLOPs a token and state bytes of a model.

  seqzoo info model=transformer model.dim=256
  seqzoo info runs/charlm/lstm/2026-01-31_12-00-00

Keys are those of `seqzoo train --help`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; leave with status 0, 1 (the run failed) or 2 (the request was wrong)."""
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        launch.report(error)
        status = 2
    except BrokenPipeError:  # the reader of a stream left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case ["train", *rest]:
            return _train(rest)
        case ["bench", *rest]:
            return _bench(rest)
        case ["info", *rest]:
            return _info(rest)
    parser = commands.parser()
    known = commands.subparsers(parser)
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0] not in (*known, "-h", "--help", "--version"):
        raise UserError(f"{arguments[0]}: no such command{config.nearest(arguments[0], known)}")
    options = parser.parse_args(arguments)
    return int(options.run(options) or 0)


# ---- train, bench and info


def _options(command: str, arguments: list[str]) -> Any:
    """Flags and overrides, in any order."""
    parser = commands.Parser(f"seqzoo {command}", add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("overrides", nargs="*")
    if command != "info":
        parser.add_argument("-m", "--multirun", action="store_true")
        parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
        parser.add_argument("--resolve", action="store_true")
    return parser.parse_intermixed_args(arguments)


def _train(arguments: list[str]) -> int:
    options = _options("train", arguments)
    overrides = _parse(options.overrides, options.multirun)
    if options.help:
        print(_help(_compose(overrides)[0]))
        return 0
    resume = next((o.value() for o in reversed(overrides) if o.key_or_group == "resume"), None)
    if resume is not None:
        if options.multirun:
            raise UserError("resume continues one run: leave -m out")
        folder = _newest_unfinished(overrides) if resume == "auto" else Path(str(resume))
        if folder is not None:
            return _resume(folder, overrides, only_print=options.cfg is not None)

    composed = _compose(overrides)
    prepared: dict[str, Any] = {}  # data by the configuration of its task
    for cfg in composed:
        _check(cfg)
        _check_head(cfg["model"], cfg["task"])
        _check_folder(cfg["hydra"]["sweep" if options.multirun else "run"]["dir"])
    if options.cfg:
        flags = ["--cfg", options.cfg, *(["--resolve"] if options.resolve else [])]
        return _hydra(flags, overrides, lambda _: None)
    for cfg in composed:
        _prepare(cfg["task"], prepared)

    statuses: list[int] = []

    def job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        hydra = HydraConfig.get()
        if options.multirun:
            given = " ".join(hydra.overrides.task)
            print(f"\n=== run {len(statuses) + 1} of {len(composed)}: {given}", flush=True)
        resolved: Any = OmegaConf.to_container(cfg, resolve=True)
        resolved["resume"] = None
        data = _prepare(resolved["task"], prepared)
        folder = Path(hydra.run.dir if not options.multirun else hydra.runtime.output_dir)
        statuses.append(launch.run(resolved, data, folder))
        if statuses[-1] == launch.INTERRUPTED:  # in order; and a sweep ends with its run
            raise KeyboardInterrupt

    status = _hydra(["-m"] if options.multirun else [], overrides, job)
    if options.multirun and any(statuses):
        print(f"seqzoo: {sum(map(bool, statuses))} of {len(statuses)} runs failed", file=sys.stderr)
        return 1
    return max([status, *statuses])


def _bench(arguments: list[str]) -> int:
    options = _options("bench", arguments)
    overrides = _parse(options.overrides, options.multirun)
    for override in overrides:
        if override.key_or_group == "model":
            given = override.input_line.partition("=")[2]
            raise UserError(f"model={given}: give models={given}; model.KEY=VALUE sets a key")
    composed = _compose(overrides, "bench")
    if options.help:
        print(BENCH_HELP + "\n".join(_keys_help("bench", "default", composed[0]["bench"])))
        return 0
    hydra = [cfg.pop("hydra") for cfg in composed]
    if options.cfg:
        import yaml

        print(*(yaml.safe_dump(cfg, sort_keys=False) for cfg in composed), sep="---\n", end="")
        return 0
    from seqzoo.bench import plan

    plans = [plan.make(cfg) for cfg in composed]
    folder = Path(hydra[0]["sweep" if options.multirun else "run"]["dir"])
    _check_folder(str(folder))
    command = shlex.join(["seqzoo", "bench", *arguments])
    for number, (cfg, one) in enumerate(zip(composed, plans, strict=True)):
        launch.bench(cfg, one, folder / str(number) if options.multirun else folder, command)
    return 0


def _info(arguments: list[str]) -> int:
    options = _options("info", arguments)
    if options.help:
        print(INFO_HELP)
        return 0
    sizes = {}
    if len(options.overrides) == 1 and Path(options.overrides[0], "config.yaml").exists():
        cfg = config.read_config(Path(options.overrides[0]))
        sizes = config.vocabulary_sizes(Path(options.overrides[0]))
    else:
        cfg = _compose(_parse(options.overrides))[0]
        _check(cfg)
    from seqzoo.models.cost import describe

    print(describe(cfg["model"], **sizes))
    return 0


def _help(cfg: dict[str, Any]) -> str:
    """Every choice and every key with its value and what its file says of it."""
    lines = [TRAIN_HELP]
    for group in ("model", "task", "head", "experiment"):
        choices = textwrap.wrap(", ".join(config.names(group)), 80, break_on_hyphens=False)
        lines.append(f"  {group + '=':<14} {choices[0]}")
        lines += [" " * 17 + more for more in choices[1:]]
    lines.append(
        "\nKeys of this choice; another model=NAME or task=NAME before --help shows its own."
    )
    for section in SECTIONS:
        lines += _keys_help(section, cfg[section].get("name", "default"), cfg[section])
    return "\n".join(lines)


def _keys_help(section: str, name: str, values: dict[str, Any]) -> list[str]:
    """Every key of a section with its value and what its file says of it."""
    title, said = config.comments(section, name)
    if "head" in values:
        said |= config.comments("head", values["head"])[1]
    lines = [f"\n{section}={name}   {title}"]
    for key, value in values.items():
        if key != "name":
            begin = f"  {section}.{key}={config.shown(value)}".ljust(36)
            text = textwrap.wrap(said.get(key, ""), 62) or [""]
            lines.append(f"{begin} {text[0]}".rstrip())
            lines += [" " * 37 + more for more in text[1:]]
    return lines


# ---- what was asked for


def _parse(texts: Sequence[str], multirun: bool = False) -> list[Any]:
    """The overrides, read by Hydra's own parser."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    overrides = []
    for text in texts:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            key, equals, value = text.partition("=")
            if not equals or not re.fullmatch(r"\+{0,2}[\w./@]+", key):
                raise UserError(
                    f"{text}: not KEY=VALUE, such as model=lstm or models=[lstm,gru]: "
                    "see --help of train, bench or info"
                ) from None
            # Text that Hydra's grammar has other uses for, such as ~/my.txt: taken as it is.
            quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
            override = OverridesParser.create().parse_override(f"{key}={quoted}")
        if override.is_delete():
            raise UserError(
                f"{text}: no key can be taken out: set it, to null where that is allowed"
            )
        if override.is_interval_sweep():
            raise UserError(f"{text}: no list of values: use a,b or range(start,stop,step)")
        if override.is_sweep_override() and not multirun:
            listed = f"{text.partition('=')[0]}=[{text.partition('=')[2]}]"
            raise UserError(
                f"{text}: several values: add -m to run with each of them, or give a list, {listed}"
            )
        overrides.append(override)
    return overrides


def _compose(overrides: Sequence[Any], command: str = "train") -> list[dict[str, Any]]:
    """The configuration of each run of a sweep, or of the one run, with Hydra's own under `hydra`.

    Raises:
        UserError: what Hydra has to say about a wrong name, in one line.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    composed: list[Any] = []
    try:
        with initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            for texts in _combinations(overrides, loader):
                cfg = compose(command, texts, return_hydra_config=True)
                own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
                one: Any = OmegaConf.to_container(own, resolve=True)
                one["hydra"] = {kind: {"dir": cfg.hydra[kind].dir} for kind in ("run", "sweep")}
                composed.append(one)
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        raise UserError(
            f"{group}={name}: no such {group}{config.nearest(name, config.names(group))}"
        ) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        given = " ".join(override.input_line for override in overrides)
        raise UserError(f"{given}: {error}: see `seqzoo {command} --help`") from None
    return composed


def _combinations(overrides: Sequence[Any], loader: Any) -> Iterator[list[str]]:
    """The overrides of each run. A key Hydra does not know is added, for `_check` to refuse."""
    choices: list[list[str]] = []
    for override in overrides:
        override.config_loader = loader
        key = override.get_key_element()
        if override.is_sweep_override() and override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        else:
            values = [override.input_line.partition("=")[2]]
        if not override.is_hydra_override() and key not in (*SECTIONS, "head", "experiment"):
            key = "++" + key.lstrip("+")
        choices.append([f"{key}={value}" for value in values])
    return map(list, product(*choices))


def _check(cfg: dict[str, Any]) -> None:
    """Refuse what cannot run, before torch is loaded."""
    from seqzoo.models.zoo import check_model
    from seqzoo.tasks import check_task

    for key in sorted(set(cfg) - {*SECTIONS, "resume", "hydra"}):
        keys = (f"{section}.{name}" for section in SECTIONS for name in cfg.get(section) or ())
        raise config.no_such_key(key, (*SECTIONS, "resume", *keys))
    for section in SECTIONS:
        values = cfg.get(section)
        if not isinstance(values, dict) or not isinstance(values.get("name", ""), str):
            raise UserError(f"{section}: give a name: {', '.join(config.names(section))}")
    check_model(cfg["model"])
    check_task(cfg["task"])
    _check_positions(cfg["model"], cfg["task"])
    trainer = cfg["trainer"]
    config.check_keys("trainer", trainer, config.defaults("trainer", "default"))
    config.check("trainer", trainer, choices={"dtype": ("auto", "float32", "bfloat16")})
    config.check_device("trainer.device", trainer["device"])
    if all(trainer[key] is None for key in LIMITS):
        raise UserError(
            "trainer: no end: set trainer.max_steps, trainer.max_seconds or trainer.max_epochs"
        )


def _check_positions(model: dict[str, Any], task: dict[str, Any]) -> None:
    """Refuse sequences longer than the positions a model has."""
    key = "seq_len" if "seq_len" in task else "max_len"
    needed = task.get(key, 0) + (model.get("bridge") == "state")  # a source of its own has an end
    if model.get("position") in ("learned", "sinusoidal") and needed > model["max_len"]:
        raise UserError(
            f"task.{key}={task[key]} is more than the positions of "
            f"model.max_len={model['max_len']}: "
            f"try model.max_len={needed} or model.position=rope"
        )


def _check_head(model: dict[str, Any], task: dict[str, Any]) -> None:
    """Refuse an encoder where there is no source, and a vocabulary of its own without one."""
    from seqzoo.models.zoo import head

    if head(model) == "encoder_decoder":
        if "bridge" not in model:
            raise UserError("model.head=encoder_decoder: give head=encoder_decoder")
        if "target_lang" not in task:
            raise UserError(
                f"head=encoder_decoder: task={task['name']} has no source to encode: "
                "use task=translation, or head=decoder_only"
            )
        if not task.get("joint_vocabulary", True) and model.get("share_embeddings", True):
            raise UserError(
                "task.joint_vocabulary=false: source and target have unlike tokens: "
                "give model.share_embeddings=false"
            )
    elif not task.get("joint_vocabulary", True):
        raise UserError(
            "task.joint_vocabulary=false: one stack of layers reads and says both languages: "
            "use head=encoder_decoder, or task.joint_vocabulary=true"
        )


def _check_folder(wanted: str) -> None:
    """Refuse a run directory that cannot be made."""
    folder = Path(wanted).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=existing))
    except OSError:
        raise UserError(
            f"{wanted}: cannot write in {existing}: run elsewhere, or give another hydra.run.dir"
        ) from None


def _prepare(task: dict[str, Any], prepared: dict[str, Any]) -> Any:
    """The task's data; runs of a sweep that have the same share it."""
    from seqzoo import tasks

    key = json.dumps(task, sort_keys=True)
    if key not in prepared:
        prepared[key] = tasks.prepare(task)
    return prepared[key]


def _hydra(flags: Sequence[str], overrides: Sequence[Any], job: Callable[[Any], None]) -> int:
    """Hydra makes the directories, and calls `job` once or for each run of a sweep."""
    import hydra

    before, sys.argv = sys.argv, ["seqzoo train", *flags]  # flags first, it wants
    sys.argv += [override.input_line for override in overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(config.CONFIGS), config_name="train")(job)()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


# ---- going on with a run


def _resume(folder: Path, overrides: Sequence[Any], *, only_print: bool) -> int:
    """Go on from the last checkpoint, with what was asked for now on top of the run's own keys."""
    from seqzoo.models.zoo import ALIASES, head

    saved = config.read_config(folder)
    if not (folder / "checkpoints" / "last").exists():
        raise UserError(f"resume={folder}: no checkpoint to go on from: start a new run")
    trainer = {**config.defaults("trainer", "default"), **saved["trainer"]}
    for override in overrides:
        section, _, key = override.key_or_group.partition(".")
        if section == "trainer" and key:
            trainer[key] = override.value()
        elif section not in ("resume", "experiment") and not override.is_hydra_override():
            if section == "head":
                section, key = "model", "head"
            same = {"head": head(saved["model"]), **(saved.get(section) or {})}
            if same.get(key or "name") != ALIASES.get(override.value(), override.value()):
                raise UserError(
                    f"{override.input_line}: {folder} keeps its model and data, and only "
                    "trainer.* can change: leave it out, or start a new run"
                )
    resumed = {**saved, "trainer": trainer, "resume": None}
    _check(resumed)
    _check_unfinished(folder, trainer)
    _check_folder(str(folder))
    if only_print:
        import yaml

        print(yaml.safe_dump(resumed, sort_keys=False, allow_unicode=True), end="")
        return 0
    return launch.run(resumed, _prepare(resumed["task"], {}), folder, resuming=True)


def _check_unfinished(folder: Path, trainer: dict[str, Any]) -> None:
    summary = config.read_summary(folder)
    for limit, reached in LIMITS.items():
        done, end = summary.get(reached, 0), trainer[limit]
        if summary.get("status") == "finished" and end is not None and done >= end:
            raise UserError(
                f"resume={folder}: finished: trainer.{limit}={end} was reached at step "
                f"{summary['steps']:,}: raise it, as with trainer.{limit}={2 * end:g}"
            )


def _newest_unfinished(overrides: Sequence[Any]) -> Path | None:
    """The run `resume=auto` means, if there is one: of the model and task, or at hydra.run.dir."""
    from seqzoo.models.zoo import head

    cfg = _compose(overrides)[0]
    _check(cfg)
    given = [o.value() for o in overrides if o.key_or_group == "hydra.run.dir"]
    runs = Path(given[-1] if given else f"runs/{cfg['task']['name']}/{cfg['model']['name']}")
    checkpoints = sorted(runs.glob("checkpoints/last" if given else "*/checkpoints/last"))
    folders = [path.parent.parent for path in checkpoints]
    folders = [f for f in folders if head(config.read_config(f)["model"]) == head(cfg["model"])]
    unfinished = [path for path in folders if config.read_summary(path).get("status") != "finished"]
    newest = unfinished[-1] if unfinished else None
    print(
        f"resuming {newest}" if newest else f"nothing unfinished in {runs}: a new run", flush=True
    )
    return newest
