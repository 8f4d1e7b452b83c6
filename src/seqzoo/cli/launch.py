"""One training run, from a checked configuration to its closing lines."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from seqzoo import tasks
from seqzoo.config import files
from seqzoo.config.requires import requirements
from seqzoo.config.values import shown
from seqzoo.errors import UserError, is_out_of_memory
from seqzoo.report.text import number
from seqzoo.runs.directory import RunDirectory

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130  # exit statuses; 130 is a shell's for Ctrl-C


def report(error: object) -> None:
    """One line on stderr, however many the message has."""
    print(f"seqzoo: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)


def silence(stream: TextIO) -> None:
    """Throw away what is written to a stream whose reader has left, as `head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def prepare(task: Mapping[str, Any]) -> Any:
    """The task's data; runs of a sweep with the same task share it."""
    return _prepare(json.dumps(task, sort_keys=True))


@lru_cache(maxsize=4)
def _prepare(task: str) -> Any:
    return tasks.prepare(json.loads(task))


forget_data = _prepare.cache_clear  # files may have changed


def claim(wanted: str | Path, *, quiet: bool = False) -> RunDirectory:
    """A new run directory, and a line where it is not the one that was wanted."""
    folder = short(Path(wanted).absolute())
    directory = RunDirectory.claim(folder)
    if directory.path != folder and not quiet:
        print(f"{folder}: taken by an earlier run: {directory.path} is used", flush=True)
    return directory


def run(
    config: Mapping[str, Any],
    directory: RunDirectory,
    *,
    resuming: bool = False,
    hooks: Sequence[Any] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Train, in a directory that is ours; its summary.

    Raises:
        UserError: a request that is refused, of which a new run leaves no directory; or one that is
            too large for memory, whose run failed.
        Exception: the run failed; its summary has the status `failed`.
    """
    try:
        if needed := requirements(config):
            config = {**config, "requires": needed}
        directory.write_config(config)
        data = prepare(config["task"])
        return _fit(config, data, directory, resuming=resuming, hooks=hooks, quiet=quiet)
    except UserError:
        if not resuming:
            directory.remove_if_empty()
        raise
    except FloatingPointError as error:
        directory.mark_failed(str(error))
        raise
    except Exception as error:
        directory.mark_failed(traceback.format_exc())
        if not is_out_of_memory(error):
            raise
        batch = [f"task.{key}={n}" for key, n in config["task"].items() if key.startswith("batch_")]
        raise UserError(f"out of memory: lower {' or '.join([*batch, 'model.dim'])}") from None


def _fit(
    config: Mapping[str, Any],
    data: Any,
    directory: RunDirectory,
    *,
    resuming: bool,
    hooks: Sequence[Any],
    quiet: bool,
) -> dict[str, Any]:
    import torch

    from seqzoo.models.width import off_by, solved
    from seqzoo.models.zoo import build, build_keys
    from seqzoo.training.loop import train

    seed = config["trainer"]["seed"]
    torch.manual_seed(seed)
    task = tasks.make(config["task"], data, seed=seed)
    wanted = None if resuming else config["model"].get("parameters")
    keys = solved({**build_keys(config), **task.sizes()}, parameters=wanted)
    model = build(**keys)
    if wanted is not None:  # the run's configuration has the solved width
        config = {**config, "model": {**config["model"], "dim": keys["dim"]}}
        directory.write_config(config)
        if not quiet:
            size = f"model.dim={keys['dim']}, {model.n_parameters():,} parameters"
            print(
                f"model.parameters={wanted:,}: {size}{off_by(model.n_parameters(), wanted)}",
                flush=True,
            )
    return train(model, task, config, directory, hooks=hooks, resume=resuming, quiet=quiet)


class Output:
    """Standard output that may lose its reader: see `silence`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., object], *text: str) -> None:
        try:
            call(*text)
        except BrokenPipeError:
            silence(self._stream)


def attempt(
    config: Mapping[str, Any],
    directory: RunDirectory,
    *,
    resuming: bool = False,
    in_sweep: bool = False,
) -> tuple[int, Any]:
    """Train, and print the result; outside a sweep also the commands to go on with. Returns the
    exit status and the summary."""
    with redirect_stdout(Output(sys.stdout)):
        return _attempt(config, directory, resuming, in_sweep)


def _attempt(
    config: Mapping[str, Any], directory: RunDirectory, resuming: bool, in_sweep: bool
) -> tuple[int, Any]:
    try:
        summary = run(config, directory, resuming=resuming)
    except UserError as error:
        report(error)
        return REFUSED, None
    except FloatingPointError as error:
        report(error)
        return FAILED, None
    except Exception:
        traceback.print_exc()
        return FAILED, None
    if summary["status"] != "finished":
        again = f"{command()} train {shlex.quote(f'resume={directory.path}')}"
        print(f"stopped at step {summary['steps']:,}; to go on: {again}")
        return INTERRUPTED, summary
    print("\n".join(closing_lines(summary)))
    if not in_sweep:
        print("\nnext:", *next_commands(summary, config, directory.path), sep="\n  ")
    return DONE, summary


def best_metric(summary: Mapping[str, Any]) -> float | None:
    """The value of the task's own metric: what a sweeper optimises."""
    from seqzoo.config.schema import load

    first = load(tasks.entry(summary["task"]).task).metrics[0].name
    value = summary.get(f"val/{first}")
    return None if value is None else float(value)


# ---- what is printed at the end


def closing_lines(summary: Mapping[str, Any]) -> list[str]:
    """The result."""
    return [
        f"\n{summary['model']} on {summary['task']}, {summary['parameters']:,} parameters: "
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens",
        f"{summary['train_seconds']:.0f} s with evaluations; "
        f"{summary['tokens_per_second']:,.0f} tokens/s in training steps{_flops(summary)}",
        *(f"  {line}" for line in metric_lines(summary)),
    ]


def next_commands(
    summary: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> Iterator[str]:
    """Commands to go on with: uses of the model, and another model on the same data."""
    seqzoo, run = command(), shlex.quote(str(folder))
    for name, example in tasks.entry(config["task"]["name"]).commands.items():
        yield f"{seqzoo} {name} {run} {example}".rstrip()
    yield f"{seqzoo} dashboard {shlex.quote(str(runs_folder(folder)))}"
    other = "gru" if summary["model"] == "lstm" else "lstm"
    task, usual = config["task"], files.defaults("task", config["task"]["name"])
    own = [f"task.{key}={shown(v)}" for key, v in task.items() if v != usual.get(key)]
    yield f"{seqzoo} train " + shlex.join([f"model={other}", f"task={task['name']}", *own])


def _flops(summary: Mapping[str, Any]) -> str:
    """FLOP/s and the share of the machine's peak, of a run that was long enough to measure it."""
    if "peak_share" not in summary:
        return ""
    share = 100 * summary["peak_share"]
    return f", {number(summary['flops_per_second'] / 1e9)} GFLOP/s ({share:.0f} % of the peak)"


def metric_lines(values: Mapping[str, Any]) -> list[str]:
    """Metrics as aligned lines, with their units; those by length are left to `compare`."""
    shown = {
        key: value
        for key, value in values.items()
        if "/" in key and "_by_" not in key and isinstance(value, (int, float))
    }
    width = max(map(len, shown), default=0)
    return [f"{key:<{width}}  {_with_unit(key, value)}" for key, value in shown.items()]


def _with_unit(key: str, value: float) -> str:
    unit = tasks.metric(key).unit
    if unit == "%":
        return f"{value:7.2f} %"
    return f"{value:9.4f} {unit}".rstrip()


def runs_folder(folder: Path, otherwise: Path | None = None) -> Path:
    """The folder `runs` that a run directory is in; where it is in none, itself or `otherwise`."""
    parts = folder.parts
    if "runs" in parts:
        return Path(*parts[: parts.index("runs") + 1])
    return otherwise or folder


def short(folder: Path) -> Path:
    """As it would be typed: relative to the working directory if it is below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def command() -> str:
    """What to type for `seqzoo`, which is not on the path of a shell outside the environment."""
    script = Path(sys.executable).with_name("seqzoo")
    if shutil.which("seqzoo") or not script.exists():
        return "seqzoo"
    return shlex.quote(str(short(script)))
