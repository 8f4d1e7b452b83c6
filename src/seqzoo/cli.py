"""The command line, and the only file that knows Hydra.

Whatever can be refused without torch is refused before it is loaded: names, keys, values, files.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from seqzoo import config
from seqzoo.errors import UserError

DESCRIPTION = """\
Sequence models as state machines: train them, compare them, write with them.

  seqzoo train model=lstm task=charlm           train a character language model
  seqzoo train model=transformer task=translation
  seqzoo train -m model=rnn,lstm,gru            the same with each of several models
  seqzoo generate RUN --prompt "ROMEO:"         let a trained model write
  seqzoo translate RUN "forty-two"              translate with a trained model
  seqzoo dashboard                              look at all runs in TensorBoard

`seqzoo COMMAND --help` says more of each. Tab completion: eval "$(seqzoo completion bash)"
"""
HYDRA_COMMANDS = ("train", "info")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; leave with status 0, 1 (the run failed) or 2 (the request was wrong)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(arguments)
    except UserError as error:
        print(f"seqzoo: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # the reader of a stream left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in HYDRA_COMMANDS:
        command, rest = arguments[0], arguments[1:]
        return _train(rest) if command == "train" else _info(rest)
    options = _parser().parse_args(arguments)
    return int(options.run(options) or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "seqzoo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int | None], help: str, **more: Any
    ) -> Any:
        sub = commands.add_parser(name, help=help, description=help + ".", **more)
        sub.set_defaults(run=run)
        return sub

    commands.add_parser(
        "train", help="train a model on a task (seqzoo train --help lists every key)"
    )

    sub = add("eval", _eval, "measure a run again, on its own data or on other")
    _add_run(sub)
    sub.add_argument(
        "--split",
        default="val",
        choices=("val", "test"),
        help="part of the run's data (default: val)",
    )
    sub.add_argument("--path", help="another file to measure on: a text, or a TSV of pairs")

    sub = add("generate", _generate, "write on from a prompt, token by token")
    _add_run(sub)
    sub.add_argument("--prompt", default="\n", help="how the text begins (default: a new line)")
    sub.add_argument(
        "--tokens", type=_at_least(int, 1), default=300, help="how many to write (default: 300)"
    )
    sub.add_argument(
        "--temperature",
        type=_at_least(float, 0),
        default=0.8,
        help="0: always the likeliest token (default: 0.8)",
    )
    sub.add_argument("--top-k", type=_at_least(int, 1), help="choose among the K likeliest tokens")
    sub.add_argument(
        "--top-p", type=_share, help="choose among the fewest tokens of probability P together"
    )
    sub.add_argument("--seed", type=_at_least(int, 0), help="the same seed writes the same text")

    sub = add("translate", _translate, "translate sentences, or the lines of standard input")
    _add_run(sub)
    sub.add_argument(
        "sentences",
        nargs="*",
        metavar="SENTENCE",
        help="without any: read lines from standard input",
    )

    commands.add_parser(
        "info", help="parameters, FLOPs and state of a configured model (seqzoo info model=gru)"
    )

    sub = add(
        "verify",
        _verify,
        "check the laws of the state protocol on this machine, and print the table",
    )
    sub.add_argument("models", nargs="*", metavar="MODEL", help="names of models (default: all)")

    sub = add("dashboard", _dashboard, "open TensorBoard on a folder of runs")
    sub.add_argument("folder", nargs="?", default="runs", help="default: runs")
    sub.add_argument(
        "--port", type=_at_least(int, 0), default=6006, help="0: any free one (default: 6006)"
    )
    sub.add_argument("--host", default="localhost", help="default: localhost")

    sub = add(
        "completion",
        _completion,
        'print what switches on tab completion: eval "$(seqzoo completion bash)"',
    )
    sub.add_argument("shell", choices=("bash", "zsh"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run directory, as seqzoo train prints it")
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), help="whose weights (default: the best)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")


def _at_least(kind: type, low: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r}: give {what} from {low:g} up")
        return value

    return parse


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0 and at most 1")
    return value


# ---- commands on a run


def _load(options: argparse.Namespace) -> Any:
    config.read_config(Path(options.folder))  # refuse what is no run before torch is loaded
    from seqzoo.run import load

    return load(options.folder, device=options.device, checkpoint=options.checkpoint)


def _eval(options: argparse.Namespace) -> None:
    data = {"path": options.path, "corpus": None} if options.path else {}
    if options.path and not Path(options.path).is_file():
        raise UserError(f"--path {options.path}: no such file: give a text file, or a TSV of pairs")
    for name, value in _load(options).evaluate(options.split, **data).items():
        print(f"{name}\t{value:.4f}" if isinstance(value, float) else f"{name}\t{value}")


def _generate(options: argparse.Namespace) -> None:
    run = _load(options)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    pieces = run.stream(options.prompt, options.tokens, **sampling)
    first = next(pieces)  # what is wrong with the prompt shows before it is repeated
    print(options.prompt.lstrip("\n") + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _translate(options: argparse.Namespace) -> None:
    run = _load(options)
    if options.sentences:
        print(*run.translate(options.sentences), sep="\n")
        return
    for line in sys.stdin:
        print(*run.translate([line.rstrip("\n")]), flush=True)


def _verify(options: argparse.Namespace) -> int:
    from seqzoo.models.zoo import ALIASES, FAMILIES, family

    names = [ALIASES.get(name, name) for name in options.models] or list(FAMILIES)
    for name in names:
        family(name)
    from seqzoo.laws import verify

    return 0 if verify(names) else 1


def _dashboard(options: argparse.Namespace) -> None:
    folder = Path(options.folder)
    if not any(folder.rglob("events.out.tfevents.*")) if folder.is_dir() else True:
        raise UserError(
            f"{folder}: no TensorBoard logs in it: run seqzoo train first, or give another folder"
        )
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(logdir=str(folder), port=options.port, host=options.host, reload_interval=15)
    url = board.launch().rstrip("/")
    print(
        f"""TensorBoard shows {folder}:
  curves            {url}/?smoothing=0#timeseries
  throughput        {url}/?smoothing=0&tagFilter=tokens_per_second#timeseries
  what they wrote   {url}/#text
  hyper-parameters  {url}/#hparams
Ctrl-C stops it.""",
        flush=True,
    )
    try:
        while True:
            import time

            time.sleep(3600)
    except KeyboardInterrupt:
        print()


def _completion(options: argparse.Namespace) -> None:
    zsh = "autoload -U +X bashcompinit && bashcompinit\n" if options.shell == "zsh" else ""
    print(zsh + _COMPLETION.replace("COMMANDS", " ".join(_commands())))


def _commands() -> list[str]:
    actions = _parser()._actions
    return [
        name for action in actions if isinstance(action.choices, dict) for name in action.choices
    ]


# Hydra completes what follows `train` and `info`, if it is asked as if the command were its own.
_COMPLETION = """\
_seqzoo() {
  local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "COMMANDS" -- "$word"))
  elif [ "$command" = train ] || [ "$command" = info ]; then
    local line="${COMP_LINE/ $command / }"
    COMPREPLY=($(COMP_LINE="$line" COMP_POINT=$((COMP_POINT - ${#command} - 1)) seqzoo train -sc query=bash))
    [ "${#COMPREPLY[@]}" -eq 1 ] && [[ "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
  else
    compopt -o filenames; COMPREPLY=($(compgen -f -- "$word"))
  fi
}
COMP_WORDBREAKS="${COMP_WORDBREAKS//=}"
complete -F _seqzoo seqzoo"""


# ---- commands that Hydra configures


def _train(arguments: list[str]) -> int:
    flags, overrides = _split(arguments)
    if any(
        flag.startswith(("-h", "--h", "-sc", "--shell", "--info", "-i", "--version"))
        for flag in flags
    ):
        return _hydra(flags, overrides, lambda _: None)
    multirun = bool({"-m", "--multirun"} & set(flags))
    resume = [o.partition("=")[2] for o in overrides if o.partition("=")[0].lstrip("+") == "resume"]
    composed = [_compose(one) for one in _expand(overrides, multirun)]
    for cfg in composed:
        _check(cfg)
    if resume and resume[-1] not in ("null", ""):
        if multirun:
            raise UserError("resume continues one run: leave -m out")
        run = _run_to_resume(resume[-1], composed[0])
        if run is not None:
            overrides = [*overrides, f"hydra.run.dir='{run}'"]
    if "--cfg" in " ".join(flags) or "-c" in flags:
        return _hydra(flags, overrides, lambda _: None)

    statuses: list[int] = []

    def job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        if multirun:
            print(
                f"\n=== run {len(statuses) + 1} of {len(composed)}: {' '.join(hydra.overrides.task)}",
                flush=True,
            )
        statuses.append(_run_job(cfg, Path(hydra.runtime.output_dir), list(hydra.overrides.task)))

    status = _hydra(flags, overrides, job)
    if multirun and any(statuses):
        print(f"seqzoo: {sum(map(bool, statuses))} of {len(statuses)} runs failed", file=sys.stderr)
    return max([status, *statuses])


def _run_job(cfg: Any, folder: Path, overrides: list[str]) -> int:
    """One training run; failures are reported here, so that a sweep goes on."""
    try:
        from omegaconf import OmegaConf

        resolved = OmegaConf.to_container(cfg, resolve=True)
        resuming = resolved["resume"] is not None and (folder / "checkpoints" / "last").exists()
        if resuming:
            resolved = _merge(config.read_config(folder), overrides, folder)
            _check(resolved)
        else:
            folder = _claim(folder)
        resolved["resume"] = None
        from seqzoo import tasks

        data = tasks.prepare(resolved["task"])
        if resolved["trainer"]["device"].startswith("cuda") and _torch_is_cpu_only():
            raise UserError(
                f"trainer.device={resolved['trainer']['device']}: this torch is built for CPUs: use cpu or auto"
            )
        OmegaConf.save(OmegaConf.create(resolved), folder / "config.yaml")
        return _fit(resolved, data, folder, resuming)
    except UserError as error:
        _remove_if_empty(folder)
        print(f"seqzoo: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        _mark_failed(folder, str(error))
        print(f"seqzoo: {error}", file=sys.stderr)
        return 1
    except Exception:
        _mark_failed(folder, traceback.format_exc())
        traceback.print_exc()
        return 1


def _fit(resolved: dict[str, Any], data: Any, folder: Path, resuming: bool) -> int:
    import torch

    from seqzoo import tasks
    from seqzoo.models.zoo import build
    from seqzoo.training.loop import train

    trainer = resolved["trainer"]
    torch.manual_seed(trainer["seed"])
    model = build(vocab_size=data.tokenizer.vocab_size, **resolved["model"])
    task = tasks.make(resolved["task"], data, seed=trainer["seed"])
    summary = train(model, task, trainer, folder, config=resolved, resume=resuming)
    if summary["status"] != "finished":
        print(f"stopped at step {summary['steps']:,}; to go on: seqzoo train resume={folder}")
        return 1
    print(_closing(summary, folder))
    return 0


def _closing(summary: dict[str, Any], folder: Path) -> str:
    shown = {k: v for k, v in summary.items() if "/" in k}
    numbers = "\n".join(
        f"  {k:<18} {v:.4f}" if isinstance(v, float) else f"  {k:<18} {v}" for k, v in shown.items()
    )
    try_it = {
        "charlm": f'seqzoo generate {folder} --prompt "The "',
        "translation": f'seqzoo translate {folder} "forty-two"',
    }.get(summary["task"], f"seqzoo eval {folder}")
    return f"""
{summary["model"]} on {summary["task"]}: {summary["parameters"]:,} parameters, {summary["steps"]:,} steps, \
{summary["tokens"]:,} tokens in {summary["train_seconds"]:.0f} s ({summary["tokens_per_second"]:,.0f} tokens/s)
{numbers}

next:
  {try_it}
  seqzoo dashboard {Path(*folder.parts[: folder.parts.index("runs") + 1]) if "runs" in folder.parts else folder}
  seqzoo train model={"gru" if summary["model"] == "lstm" else "lstm"} task={summary["task"]}"""


def _info(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(
            "seqzoo info [KEY=VALUE ...]: parameters, FLOPs a token and state bytes of a configured model.\n"
            "  seqzoo info model=transformer model.dim=256\nKeys are those of `seqzoo train --help`."
        )
        return 0
    cfg = _compose(arguments)
    _check(cfg)
    from seqzoo.info import describe

    print(describe(cfg["model"]))
    return 0


# ---- Hydra


def _hydra(flags: list[str], overrides: list[str], job: Callable[[Any], None]) -> int:
    import hydra

    before, sys.argv = sys.argv, ["seqzoo train", *flags, *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(config.CONFIGS), config_name="train")(job)()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags, with their values, and overrides: Hydra wants all flags first."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--info", "-i"):
            flags += [argument, next(rest, "job")]
        elif argument == "-sc" or argument == "--shell-completion":
            flags.append(argument)
        elif argument.startswith("-"):
            flags.append(argument)
        else:
            overrides.append(argument)
    return flags, overrides


def _expand(overrides: Sequence[str], multirun: bool) -> Iterator[list[str]]:
    """The overrides of each run of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    choices: list[list[str]] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except OverrideParseException:
            raise UserError(
                f"{text}: not KEY=VALUE: see seqzoo train --help, and quote what the shell changes"
            ) from None
        if override.is_sweep_override() and not multirun:
            raise UserError(f"{text}: several values: add -m to train with each of them")
        swept = override.is_sweep_override() and override.is_discrete_sweep()
        choices.append(
            [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            if swept
            else [text]
        )
    for combination in product(*choices):
        yield list(combination)


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration, with what Hydra has to say about a wrong one in a line."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    own = [text for text in overrides if not text.lstrip("+~").startswith("hydra.")]
    try:
        with initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
            cfg = compose("train", own)
            resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        raise UserError(
            f"{group}={name}: no such {group}{config.nearest(name, config.names(group))}"
        ) from None
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, own)) from None
    assert isinstance(resolved, dict)
    return resolved  # type: ignore[return-value]


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """A line about an override that names no key, or cannot be read."""
    known = {
        f"{group}.{key}"
        for group in ("model", "task")
        for name in config.names(group)
        for key in config.defaults(group, name)
    }
    known |= {f"trainer.{key}" for key in config.defaults("trainer", "default")}
    for text in overrides:
        key = text.partition("=")[0].lstrip("+~")
        if (
            key in ("model", "task", "trainer", "experiment", "resume")
            or key in known
            and key in str(error) is None
        ):
            continue
        if key not in known:
            return f"{key}: no such key{config.nearest(key, known | {'model', 'task', 'experiment', 'resume'})}"
    for text in overrides:
        key = text.partition("=")[0]
        if key.rpartition(".")[2] in str(error) and "." in key:
            group = key.partition(".")[0]
            return f"{key}: this {group} has no such key: see seqzoo train --help with the {group} you want"
    return " ".join(str(error).split())[:300]


def _check(cfg: dict[str, Any]) -> None:
    """Refuse what cannot run, before torch is loaded."""
    from seqzoo.models.zoo import check_model
    from seqzoo.tasks import check_task

    extra = set(cfg) - {"model", "task", "trainer", "resume"}
    if extra:
        raise UserError(
            f"{min(extra)}: no such key{config.nearest(min(extra), ('model', 'task', 'trainer', 'resume'))}"
        )
    check_model(cfg["model"])
    check_task(cfg["task"])
    trainer = cfg["trainer"]
    config.check_keys("trainer", trainer, config.defaults("trainer", "default"))
    config.check("trainer", trainer, choices={"dtype": ("auto", "float32", "bfloat16")})
    if all(trainer[key] is None for key in ("max_steps", "max_seconds", "max_epochs")):
        raise UserError(
            "trainer: no end: set trainer.max_steps, trainer.max_seconds or trainer.max_epochs"
        )


def _merge(saved: dict[str, Any], overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """A run's own configuration with what was asked for now on top."""
    from omegaconf import OmegaConf

    merged = OmegaConf.create(saved)
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key in ("model", "task") and value != saved[key]["name"]:
            raise UserError(
                f"{text}: {folder} is a run of {key}={saved[key]['name']}: leave {key} out, or start a new run"
            )
        if "." in key:
            OmegaConf.update(merged, key, OmegaConf.from_dotlist([f"x={value}"]).x)
    container: Any = OmegaConf.to_container(merged)
    return container


def _run_to_resume(wanted: str, cfg: dict[str, Any]) -> Path | None:
    """The directory `resume` means; None where `auto` finds nothing unfinished."""
    wanted = wanted.strip("'\"")
    if wanted != "auto":
        folder = Path(wanted)
        config.read_config(folder)
        if not (folder / "checkpoints" / "last").exists():
            raise UserError(
                f"resume={wanted}: this run has no checkpoint to go on from: start a new one"
            )
        return folder
    runs = Path("runs") / cfg["task"]["name"] / cfg["model"]["name"]
    unfinished = [
        path.parent.parent
        for path in sorted(runs.glob("*/checkpoints/last"))
        if not _is_finished(path.parent.parent)
    ]
    print(
        f"resuming {unfinished[-1]}" if unfinished else f"nothing unfinished in {runs}: a new run",
        flush=True,
    )
    return unfinished[-1] if unfinished else None


def _is_finished(folder: Path) -> bool:
    import json

    path = folder / "summary.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


def _claim(folder: Path) -> Path:
    """Make the run directory ours: two runs of the same second get two directories."""
    for number in range(1, 1000):
        path = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        path.mkdir(parents=True, exist_ok=True)
        try:
            (path / "config.yaml").touch(exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise UserError(f"{folder}: in use: give another hydra.run.dir")


def _remove_if_empty(folder: Path) -> None:
    """A request that was refused leaves no run directory."""
    path = folder / "config.yaml"
    if path.exists() and not path.stat().st_size:
        path.unlink()
    try:
        while not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
    except OSError:
        pass


def _mark_failed(folder: Path, reason: str) -> None:
    import json

    (folder / "summary.json").write_text(
        json.dumps({"status": "failed", "error": reason}, indent=1) + "\n"
    )


def _torch_is_cpu_only() -> bool:
    from importlib.metadata import version

    return version("torch").endswith("+cpu")
