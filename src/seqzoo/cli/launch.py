"""One training run, or one bench, from a checked configuration: its directory, its failures, its
last words."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from seqzoo.errors import UserError

INTERRUPTED = 130  # what a shell calls a command that Ctrl-C ended


def report(error: Exception) -> None:
    """One line on stderr, whatever the message has."""
    print(f"seqzoo: {' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)


def run(cfg: dict[str, Any], data: Any, folder: Path, *, resuming: bool = False) -> int:
    """Train; failures are reported here, so that a sweep goes on."""
    import yaml

    cfg = {key: value for key, value in cfg.items() if key != "hydra"}
    try:
        folder = _short(folder if resuming else _claim(folder))
        text = yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        return _fit(cfg, data, folder, resuming)
    except UserError as error:
        if not resuming:
            _remove(folder)
        report(error)
        return 2
    except FloatingPointError as error:
        _mark_failed(folder, cfg, str(error))
        report(error)
        return 1
    except Exception:
        _mark_failed(folder, cfg, traceback.format_exc())
        traceback.print_exc()
        return 1


def bench(cfg: dict[str, Any], plan: Any, folder: Path, command: str) -> None:
    """Measure a plan, and leave its results in a directory."""
    from datetime import datetime

    import yaml

    from seqzoo.bench import results, runner, tables, write
    from seqzoo.report import markdown

    folder = _short(_claim(folder))
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False), encoding="utf-8")
    date = datetime.now().isoformat(timespec="minutes", sep=" ")
    try:
        raw = runner.run(plan)
    except UserError:
        _remove(folder)
        raise
    found = results.summarise({"command": command, "date": date, "bench": plan.settings, **raw})
    write.write(found, folder)
    for title, head, rows in tables.tables(found):
        print(f"\n{title}\n{markdown(head, rows)}", end="")
    print(
        f"\nwritten to {folder}: report.html, bench.md, bench.csv, bench.json, bench.png, bench.svg"
        f"\nnext:\n  {_command()} dashboard {_runs(folder)}"
    )


def _fit(cfg: dict[str, Any], data: Any, folder: Path, resuming: bool) -> int:
    import torch

    from seqzoo import tasks
    from seqzoo.models.zoo import build
    from seqzoo.training.loop import train

    trainer = cfg["trainer"]
    torch.manual_seed(trainer["seed"])
    model = build(**tasks.vocabularies(data), **cfg["model"])
    task = tasks.make(cfg["task"], data, seed=trainer["seed"])
    summary = train(model, task, trainer, folder, config=cfg, resume=resuming)
    if summary["status"] != "finished":
        print(f"stopped at step {summary['steps']:,}; to go on: seqzoo train resume={folder}")
        return INTERRUPTED
    print(_closing(summary, cfg, folder))
    return 0


def _closing(summary: dict[str, Any], cfg: dict[str, Any], folder: Path) -> str:
    """The result, and commands to go on with."""
    numbers = [
        f"  {key:<18} {value:.4f}" if isinstance(value, float) else f"  {key:<18} {value}"
        for key, value in summary.items()
        if "/" in key
    ]
    run = shlex.quote(str(folder))
    seqzoo = _command()
    if "prompt" in cfg["task"]:
        use = f'{seqzoo} generate {run} --prompt "The "'
    elif "target_lang" in cfg["task"]:
        spelled = cfg["task"]["corpus"] in (None, "numbers") and cfg["task"]["source_lang"] == "en"
        ours = spelled and not (cfg["task"]["path"] or cfg["task"]["source"])
        use = f"{seqzoo} translate {run} " + ('"forty-two"' if ours else "< sentences.txt")
    else:
        use = f"{seqzoo} eval {run}"
    other = "gru" if summary["model"] == "lstm" else "lstm"
    return "\n".join(
        [
            f"\n{summary['model']} on {summary['task']}: {summary['parameters']:,} parameters, "
            f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in "
            f"{summary['train_seconds']:.0f} s, evaluations on the way included "
            f"({summary['tokens_per_second']:,.0f} tokens/s while training)",
            *numbers,
            "\nnext:",
            f"  {use}",
            f"  {seqzoo} dashboard {_runs(folder)}",
            f"  {seqzoo} train model={other} task={summary['task']}",
        ]
    )


def _runs(folder: Path) -> str:
    """The folder of all runs that a run directory is in, or itself, as one would type it."""
    parts = folder.parts
    return shlex.quote(str(Path(*parts[: parts.index("runs") + 1]) if "runs" in parts else folder))


def _short(folder: Path) -> Path:
    """As one would type it: relative to where one is, if it is below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _command() -> str:
    """What to type for `seqzoo`, which is not on the path of a shell outside the environment."""
    script = Path(sys.executable).with_name("seqzoo")
    if shutil.which("seqzoo") or not script.exists():
        return "seqzoo"
    return shlex.quote(str(_short(script)))


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


def _remove(folder: Path) -> None:
    """A request that was refused leaves no run directory, where nothing else is in it."""
    if [path.name for path in folder.iterdir()] == ["config.yaml"]:
        (folder / "config.yaml").unlink()
        folder.rmdir()


def _mark_failed(folder: Path, cfg: dict[str, Any], reason: str) -> None:
    named = {section: cfg[section]["name"] for section in ("model", "task")}
    text = json.dumps({**named, "status": "failed", "error": reason}, indent=1) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
