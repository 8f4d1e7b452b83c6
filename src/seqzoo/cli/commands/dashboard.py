"""`seqzoo dashboard`: TensorBoard, with links that open on what they name."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import webbrowser
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from seqzoo.cli.parser import value
from seqzoo.errors import UserError

RELOAD_SECONDS = 15
Port = Annotated[int, Field(ge=0, le=65535)]


def add(parser: ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="default: runs")
    parser.add_argument(
        "--port", type=value(Port), default=6006, help="0: any free one (default: 6006)"
    )
    parser.add_argument("--host", default="localhost", help="default: localhost")
    parser.add_argument("--no-browser", action="store_true", help="only print the links")


def run(options: Namespace) -> None:
    folder = Path(options.folder)
    if not any(folder.rglob("events.out.tfevents.*")):
        raise UserError(
            f"{folder}: no TensorBoard logs in it: run seqzoo train first, or give another folder"
        )
    with tempfile.TemporaryDirectory(prefix="seqzoo-") as named:
        _show(options, folder, Path(named))


def _show(options: Namespace, folder: Path, named: Path) -> None:
    """Serve until Ctrl-C, from a folder of links that names each run as it is named."""
    link_runs(folder, named)
    url = _serve(options, named)
    views = links(url, folder)
    print(f"TensorBoard shows {folder}:")
    for name, link in views.items():
        print(f"  {name:<17} {link}")
    print("Ctrl-C stops it.", flush=True)
    if not options.no_browser:
        _open(next(iter(views.values())))
    try:
        while True:  # runs that begin meanwhile appear too
            time.sleep(RELOAD_SECONDS)
            link_runs(folder, named)
    except KeyboardInterrupt:
        print()


def link_runs(folder: Path, named: Path) -> None:
    """Links to the event files of every run, without the `tensorboard` that ends their path:
    TensorBoard names a run by its path."""
    for events in folder.rglob("events.out.tfevents.*"):
        parts = [p for p in events.parent.relative_to(folder).parts if p != "tensorboard"]
        target = named / Path(*parts or [folder.resolve().name])
        target.mkdir(parents=True, exist_ok=True)
        for path in events.parent.iterdir():
            run = path.is_dir() and any(path.rglob("events.out.tfevents.*"))  # has links of its own
            link = target / path.name
            if not run and not link.is_symlink():
                link.symlink_to(path.resolve())


def _serve(options: Namespace, folder: Path) -> str:
    """Start TensorBoard; its address."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(
        logdir=str(folder),
        port=options.port,
        host=options.host,
        reload_interval=RELOAD_SECONDS,
        load_fast="false",  # else it prints a note about itself
    )
    try:
        return str(board.launch()).rstrip("/")
    except program.TensorBoardServerException as error:
        raise UserError(f"--port {options.port}: {error}: give another, or 0 for any") from None


def links(url: str, folder: Path) -> dict[str, str]:
    """The views of a folder by name, the first one to open first."""
    views = {
        "curves": f"{url}/?smoothing=0&tagFilter=%5Etrain%2F%7C%5Eval%2F#timeseries",
        "throughput": f"{url}/?smoothing=0&tagFilter=tokens_per_second%7Cms_per_token#timeseries",
        "samples": f"{url}/#text",
        "hyper-parameters": f"{url}/#hparams",
    }
    if any(folder.rglob("projector_config.pbtxt")):
        views["embeddings"] = f"{url}/#projector"
    charts = f"{url}/#custom_scalars&_smoothingWeight=0"
    if any(folder.rglob("bench.json")):  # one chart with all families
        views = {"bench": charts, **views}
    if any(folder.rglob("exam.json")):  # scores, costs and figures
        views = {"exam": f"{url}/?smoothing=0&tagFilter=%5Eexam#timeseries", **views}
    if any(folder.glob("compare.json")) or any(folder.glob("*/compare.json")):
        views = {"comparison": charts, **views}
    return views


def _open(link: str) -> None:
    """In a browser, where there is a screen to show one on."""
    screen = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if screen and sys.stdout.isatty():
        webbrowser.open(link)
