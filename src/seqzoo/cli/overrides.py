"""The flags of `train`, `bench` and `info`, which take Hydra's overrides, in any order."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from seqzoo.cli.parser import Parser
from seqzoo.config import files


def read_options(command: str, arguments: list[str]) -> Namespace:
    """Flags and overrides; a folder of `--config-dir` is added to those that are searched."""
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
    if options.config_dir is not None:
        files.add_folder(options.config_dir)
    return options


def hydra_flags(options: Namespace) -> list[str]:
    """The flags as Hydra takes them."""
    flags = ["--multirun"] if options.multirun else []
    for name in ("cfg", "package", "info"):
        if value := getattr(options, name):
            flags += [f"--{name}", value]
    return [*flags, "--resolve"] if options.resolve else flags
