"""`seqzoo info`: what a configured model costs."""

from __future__ import annotations

from pathlib import Path

from seqzoo.cli.checks import check_config
from seqzoo.cli.compose import compose, parse
from seqzoo.cli.help import INFO
from seqzoo.cli.parser import read_options
from seqzoo.config.requires import check_requirements
from seqzoo.errors import UserError
from seqzoo.models.zoo import build_keys
from seqzoo.runs.directory import RunDirectory


def main(arguments: list[str]) -> int:
    options = read_options("info", arguments)
    if options.help:
        print(INFO)
        return 0
    sizes = {}
    given = options.overrides
    if runs := [one for one in given if Path(one).is_dir() or "/" in one and "=" not in one]:
        if len(given) > 1:
            raise UserError(f"{' '.join(given)}: a run takes no overrides: give {runs[0]} alone")
        directory = RunDirectory.open(Path(runs[0]))
        config, sizes = directory.config, directory.sizes()
        check_requirements(config, directory.path, "model")
    else:
        config = compose(parse(options.overrides))[0]
        check_config(config)
    from seqzoo.models.cost import describe

    parameters = None if runs else config["model"]["parameters"]  # a run has solved for its width
    print(describe(build_keys(config), parameters=parameters, **sizes))
    return 0
