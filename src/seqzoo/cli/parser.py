"""argparse as all commands use it: errors of one line, values of declared types."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from seqzoo.config import files
from seqzoo.config.values import CACHE_POLICIES, Amount, Count, describe
from seqzoo.errors import UserError

DEVICES = "auto, cpu, cuda, cuda:N (default: auto)"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are `UserError`s, and whose options cannot be shortened."""

    def __init__(self, *args: Any, **more: Any) -> None:
        more.setdefault("formatter_class", _formatter)
        more["allow_abbrev"] = False
        super().__init__(*args, **more)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}: see `{self.prog} --help`")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=16, width=100)


def value(annotation: Any) -> Callable[[str], Any]:
    """A type of argparse: what an annotation allows, read from text."""

    def parse(text: str) -> Any:
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(annotation).validate_python(text)
        except ValidationError:
            raise argparse.ArgumentTypeError(f"{text!r}: give {describe(annotation)}") from None

    return parse


def add_run(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The argument RUN, and the options of every command that loads one."""
    about = "a run directory, as seqzoo train prints it"
    parser.add_argument("folder", metavar="RUN", nargs="+" if several else None, help=about)
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        help="which weights (default: those of the exported model: the best, or the mean)",
    )
    parser.add_argument("--device", default="auto", help=DEVICES)


def add_search(parser: argparse.ArgumentParser) -> None:
    """The options of a beam search."""
    parser.add_argument(
        "--beam",
        type=value(Count),
        metavar="N",
        help="beams; 1: greedy (default: task.beam of the run)",
    )
    parser.add_argument(
        "--length-penalty",
        type=value(Amount),
        metavar="A",
        help="scores are divided by length ** A (default: task.length_penalty of the run)",
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The option of a bounded cache."""
    parser.add_argument(
        "--cache",
        metavar="POLICY:SIZE",
        help=f"a Transformer keeps SIZE tokens only, chosen by {', '.join(CACHE_POLICIES)}; with "
        ":prompt after it, the prompt is read at once and then cut",
    )


def read_options(command: str, arguments: list[str]) -> argparse.Namespace:
    """The flags and overrides of `train`, `bench`, `exam` and `info`, in any order. A folder of
    `--config-dir` is added to those that are searched."""
    parser = Parser(f"seqzoo {command}", add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config-dir", "-cd", type=Path)
    if command != "info":
        parser.add_argument("--multirun", "-m", action="store_true")
        parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        parser.add_argument("--resolve", action="store_true")
        parser.add_argument("--package", "-p")
        parser.add_argument("--config-name", "-cn")
        parser.add_argument(
            "--info",
            "-i",
            nargs="?",
            const="all",
            choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        )
    options = parser.parse_intermixed_args(arguments)
    for name in ("package", "resolve"):
        if getattr(options, name, None) and options.cfg is None:
            raise UserError(f"--{name}: only works with --cfg: add --cfg job, or leave it out")
    if getattr(options, "info", None) and options.cfg:
        raise UserError(f"--info with --cfg {options.cfg}: give one of them")
    if options.config_dir is not None:
        files.add_folder(options.config_dir)
    return options
