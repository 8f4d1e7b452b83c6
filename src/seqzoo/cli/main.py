"""`seqzoo COMMAND ...`: finds the command, and turns what happens into an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from seqzoo.cli.launch import INTERRUPTED, REFUSED, report, silence
from seqzoo.cli.parser import Parser
from seqzoo.errors import UserError, nearest

DESCRIPTION = """\
Sequence models as state machines: train them, compare them, generate text with them.

  seqzoo train model=lstm task=charlm           train a character language model
  seqzoo train model=transformer task=translation
  seqzoo train model=gru task=classification
  seqzoo train -m model=rnn,lstm,gru            the same with each of several models
  seqzoo generate RUN --prompt "ROMEO:"         generate text with a trained model
  seqzoo translate RUN "forty-two"              translate with a trained model
  seqzoo bench models=[lstm,transformer]        speed and memory against sequence length
  seqzoo exam models=[lstm,gla,transformer]     recall, copying, tracking, language of each
  seqzoo compare RUN RUN                        curves and tables of several runs
  seqzoo dashboard                              look at all runs in TensorBoard

`seqzoo COMMAND --help` describes each. Tab completion: eval "$(seqzoo completion bash)"
"""
COMMANDS = {
    "train": "train a model on a task (seqzoo train --help: every key)",
    "eval": "measure a run again, on its own data or on other data",
    "generate": "continue a prompt, token by token",
    "translate": "translate sentences, or the lines of standard input",
    "classify": "classify texts, or the lines of standard input",
    "bench": "speed, memory and state against sequence length",
    "exam": "what several models can learn and remember, and what it costs",
    "compare": "compare training runs, two benches, or two exams, side by side",
    "inspect": "look inside a model: dependence on the past, attention, embeddings",
    "info": "parameters, FLOPs and state of a configured model",
    "verify": "check the laws of the state protocol on this machine",
    "import": "make a run of an official RWKV checkpoint, version 4 to 7",
    "export": "write a run's model for other software",
    "dashboard": "open TensorBoard on a folder of runs",
    "completion": "print what switches on tab completion",
}
SPINS = "3000"  # turns of a waiting loop; the default of 300,000 takes milliseconds
_ELSEWHERE = {"train": "seqzoo.cli.train", "import": "seqzoo.cli.commands.importing"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; leave with status 0, 1 (the run failed) or 2 (the request was wrong)."""
    bound_waiting()
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        report(error)
        status = REFUSED
    except BrokenPipeError:
        silence(sys.stdout)
        status = 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def bound_waiting() -> None:
    """Have a thread of torch sleep soon where it waits for another one, unless the user chose.

    At the end of every parallel loop the threads wait for the last one, and spin meanwhile. Where
    another process keeps a core busy, the last one waits for that core: spinning holds it up.
    libgomp, in torch's wheels, reads the variable once, when torch is loaded.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name not in COMMANDS:
        if not name.startswith("-"):
            raise UserError(f"{name}: no such command{nearest(name, COMMANDS)}")
        whole_parser().parse_args([name])
        return 0
    module = _module(name)
    if hasattr(module, "main"):
        return int(module.main(arguments[1:]))
    options = command_parser(name).parse_args(arguments[1:])
    return int(module.run(options) or 0)


def whole_parser() -> Parser:
    """The parser whose help lists all commands."""
    parser = Parser("seqzoo", description=DESCRIPTION)
    number = f"seqzoo {version('seqzoo')}"
    parser.add_argument("--version", action="version", version=number, help="print it and leave")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return parser


def command_parser(name: str) -> Parser:
    """The options of a command that Hydra does not configure."""
    summary = COMMANDS[name]
    parser = Parser(f"seqzoo {name}", description=summary[0].upper() + summary[1:] + ".")
    _module(name).add(parser)
    return parser


def _module(name: str) -> ModuleType:
    """A command's module: it has `add(parser)` and `run(options)`; with overrides, `main`."""
    return import_module(_ELSEWHERE.get(name, f"seqzoo.cli.commands.{name}"))
