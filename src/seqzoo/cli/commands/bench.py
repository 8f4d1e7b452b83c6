"""`seqzoo bench`: measure a plan, and leave its results in a directory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo.cli import launch
from seqzoo.cli.checks import check_folder
from seqzoo.cli.compose import compose, parse, print_instead, refuse_model
from seqzoo.cli.help import bench_help
from seqzoo.cli.parser import read_options
from seqzoo.errors import UserError

if TYPE_CHECKING:
    from seqzoo.bench.plan import Plan


def main(arguments: list[str]) -> int:
    options = read_options("bench", arguments)
    overrides = parse(options.overrides, multirun=options.multirun)
    refuse_model(overrides)
    configs = compose(overrides, options.config_name or "bench")
    if options.help:
        print(bench_help(configs[0]["bench"]))
        return 0
    hydra = [config.pop("hydra") for config in configs]
    from seqzoo.bench import plan

    plans = [plan.make(config) for config in configs]
    wanted = hydra[0]["sweep" if options.multirun else "run"]["dir"]
    check_folder(wanted)
    if print_instead(options, overrides, configs, "bench", "-m" if options.multirun else None):
        return 0
    folder = Path(wanted)
    command = shlex.join(["seqzoo", "bench", *arguments])
    for number, (config, one) in enumerate(zip(configs, plans, strict=True)):
        _measure(config, one, folder / str(number) if options.multirun else folder, command)
    return 0


def _measure(config: dict[str, Any], one: Plan, folder: Path, command: str) -> None:
    from seqzoo.bench import runner, write

    directory = launch.claim(folder)
    directory.write_config(config)
    try:
        found = runner.run(one, command)
    except UserError:
        directory.remove_if_empty()
        raise
    print(write.write(found, directory.path), end="")
    runs = shlex.quote(str(launch.runs_folder(directory.path)))
    print(
        f"\nwritten to {directory.path}:\n"
        "  report.html, bench.md, bench.csv, bench.json, bench.png, bench.svg\n"
        f"next:\n  {launch.command()} dashboard {runs}"
    )
