"""The commands that Hydra does not configure: those on a run, and what argparse says of all."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import count, islice
from pathlib import Path
from typing import Any, NoReturn

from seqzoo import config
from seqzoo.errors import UserError

DESCRIPTION = """\
Sequence models as state machines: train them, compare them, write with them.

  seqzoo train model=lstm task=charlm           train a character language model
  seqzoo train model=transformer task=translation
  seqzoo train -m model=rnn,lstm,gru            the same with each of several models
  seqzoo generate RUN --prompt "ROMEO:"         let a trained model write
  seqzoo translate RUN "forty-two"              translate with a trained model
  seqzoo bench models=[lstm,transformer]        speed and memory against sequence length
  seqzoo compare RUN RUN                        curves and tables of several runs
  seqzoo dashboard                              look at all runs in TensorBoard

`seqzoo COMMAND --help` says more of each. Tab completion: eval "$(seqzoo completion bash)"
"""


class Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line like all others."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(
            *args,
            **more,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=16, width=100
            ),
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}: see `{self.prog} --help`")


class _Version(argparse.Action):
    """`--version`, looked up only when asked for: the metadata takes time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"seqzoo {version('seqzoo')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """All commands; `train` and `info` are here only for the list that --help prints."""
    whole = Parser("seqzoo", description=DESCRIPTION)
    whole.add_argument("--version", action=_Version, nargs=0, help="print it and leave")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> Any:
        sub = commands.add_parser(name, help=help, description=help + ".")
        sub.set_defaults(run=run)
        return sub

    commands.add_parser("train", help="train a model on a task (seqzoo train --help: every key)")

    sub = add("eval", _eval, "measure a run again, on its own data or on other")
    _add_run(sub)
    sub.add_argument("--split", default="val", choices=("val", "test"), help="default: val")
    sub.add_argument("--path", help="another file to measure on: a text, or a TSV of pairs")
    _add_search(sub)
    _add_cache(sub)

    sub = add(
        "generate",
        _generate,
        "write on from a prompt, token by token; a state that grows keeps task.seq_len of them",
    )
    _add_run(sub)
    sub.add_argument("--prompt", default="\n", help="how the text begins (default: a new line)")
    sub.add_argument("--tokens", type=_count, default=300, help="how many (default: 300)")
    sub.add_argument(
        "--temperature",
        type=_temperature,
        default=0.8,
        help="0: always the likeliest token (default: 0.8)",
    )
    sub.add_argument("--top-k", type=_count, help="choose among the K likeliest tokens")
    sub.add_argument("--top-p", type=_share, help="among the fewest of probability P together")
    sub.add_argument("--seed", type=_seed, help="the same seed writes the same text")
    _add_cache(sub)

    sub = add("translate", _translate, "translate sentences, or the lines of standard input")
    _add_run(sub)
    sub.add_argument(
        "sentences", nargs="*", default=[], metavar="SENTENCE", help="none: standard input"
    )
    _add_search(sub)
    sub.add_argument(
        "--n-best",
        type=_count,
        metavar="N",
        help="N translations a sentence, of as many beams: its number, the score, the text",
    )
    sub.add_argument(
        "--attention",
        metavar="FILE",
        help="draw where it looked, for one SENTENCE: a .png, .svg or .pdf",
    )

    commands.add_parser("bench", help="speed, memory and state against sequence length")

    sub = add("compare", _compare, "put runs side by side: training runs, or two benches")
    sub.add_argument(
        "folders", nargs="+", metavar="RUN", help="run directories, or folders of them"
    )
    sub.add_argument("--metric", help="what is compared (default: the first of val/ they share)")
    sub.add_argument("--out", help="where it writes (default: runs/compare/TIME)")

    sub = add("inspect", _inspect, "look inside: dependence on the past, attention, embeddings")
    _add_run(sub, several=True)
    sub.add_argument("--length", type=_several, default=256, help="tokens a text (default: 256)")
    sub.add_argument("--texts", type=_count, default=32, help="how many (default: 32)")
    sub.add_argument("--out", help="where figures of several runs go (default: runs/inspect/TIME)")

    commands.add_parser("info", help="parameters, FLOPs and state of a configured model")

    sub = add("verify", _verify, "check the laws of the state protocol on this machine")
    sub.add_argument("models", nargs="*", metavar="MODEL", help="names of models (default: all)")

    sub = add("import", _import, "make a run of an official RWKV checkpoint, version 4 to 7")
    sub.add_argument("file", metavar="FILE", help="a .pth or .safetensors file")
    sub.add_argument("--out", required=True, metavar="RUN", help="the run directory to make")
    sub.add_argument(
        "--vocabulary", help="what its tokens stand for: the RWKV World file, or a tokenizer.json"
    )

    sub = add("export", _export, "write a run's model for other software")
    _add_run(sub)
    sub.add_argument(
        "--format",
        required=True,
        choices=("rwkv", "hf"),
        help="rwkv: a .pth for the rwkv package; hf: a folder for transformers",
    )
    sub.add_argument("--out", required=True, help="the file or folder to write")

    sub = add("dashboard", _dashboard, "open TensorBoard on a folder of runs")
    sub.add_argument("folder", nargs="?", default="runs", metavar="DIR", help="default: runs")
    sub.add_argument("--port", type=_port, default=6006, help="0: any free one (default: 6006)")
    sub.add_argument("--host", default="localhost", help="default: localhost")
    sub.add_argument("--no-browser", action="store_true", help="only print the links")

    sub = add("completion", _completion, "print what switches on tab completion")
    sub.add_argument("shell", choices=("bash", "zsh"))
    sub.add_argument("--line", help=argparse.SUPPRESS)  # what was typed: print what may follow
    return whole


def subparsers(whole: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    return next(dict(a.choices) for a in whole._actions if isinstance(a.choices, dict))


def _add_run(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    about = "a run directory, as seqzoo train prints it"
    parser.add_argument("folder", metavar="RUN", nargs="+" if several else None, help=about)
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        help="whose weights (default: the best, or the mean)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beam",
        type=_count,
        metavar="N",
        help="beams of the search; 1: greedy (default: task.beam)",
    )
    parser.add_argument(
        "--length-penalty",
        type=_temperature,
        metavar="A",
        help="scores are divided by length ** A (default: task.length_penalty)",
    )


def _search(options: argparse.Namespace, task: Mapping[str, Any]) -> tuple[int, float]:
    """Beams and length penalty: those asked for, else the run's own."""
    known = {**config.defaults("task", "translation"), **task}
    beams = options.beam or known["beam"]
    penalty = known["length_penalty"] if options.length_penalty is None else options.length_penalty
    return beams, penalty


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        metavar="POLICY:SIZE",
        help=f"keep so many tokens only, of a Transformer: {', '.join(config.CACHE_POLICIES)}; "
        "with :prompt after it, a text is read at once and then cut",
    )


def _number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], Any]:
    what = "a whole number" if kind is int else "a number"
    limits = f"from {low:g} " + ("up" if high == float("inf") else f"to {high:g}")

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value == float("inf") or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: give {what} {limits}")
        return value

    return parse


_count = _number(int, 1)
_several = _number(int, 2)
_seed = _number(int, 0, 2**63 - 1)
_port = _number(int, 0, 65535)
_temperature = _number(float, 0)
_share = _number(float, 1e-9, 1)


# ---- commands on a run


def _load(
    options: argparse.Namespace,
    *,
    folder: str | None = None,
    needs: str | None = None,
    instead: str = "",
) -> Any:
    """The run, once what can be refused without torch has been; its task has the key `needs`."""
    from seqzoo.models.zoo import family, model_keys

    folder = Path(folder or options.folder)
    saved = config.read_config(folder)
    if needs not in (None, *saved["task"]):
        raise UserError(f"{folder}: a run of task={saved['task']['name']}: use seqzoo {instead}")
    config.check_device("--device", options.device)
    if not (folder / "model" / "tokenizer.json").exists():
        raise UserError(f"{folder}: this run has no model yet: wait for one, or train again")
    other = {}
    if getattr(options, "cache", None) is not None:
        config.cache_policy("--cache", options.cache)
        name = saved["model"]["name"]
        if "cache" not in config.defaults("model", name, family(name).yaml):
            raise UserError(
                f"--cache {options.cache}: the state of {name} does not grow: leave it out"
            )
        other["cache"] = options.cache
    model_keys(**{**saved["model"], **other})
    from seqzoo.runs.run import load

    return load(folder, device=options.device, checkpoint=options.checkpoint, **other)


def _eval(options: argparse.Namespace) -> None:
    if options.path and not Path(options.path).is_file():
        what = "a folder" if Path(options.path).is_dir() else "no such file"
        raise UserError(f"--path {options.path}: {what}: give a text file, or a TSV of pairs")
    if options.path and options.split != "val":
        raise UserError(f"--split {options.split}: all of --path is measured: leave --split out")
    folder = Path(options.folder)
    task = config.read_config(folder)["task"]
    if "target_lang" not in task and (options.beam or options.length_penalty is not None):
        raise UserError(f"{options.folder}: a run of task={task['name']}: leave the search out")
    if not options.path and "imported_from" in config.read_summary(folder):
        raise UserError(f"{options.folder}: imported, it has no data of its own: give --path FILE")
    run = _load(options)
    data = {}
    if options.path:  # in place of whatever the run's own data was
        origins = ("corpus", "path", "source", "target")
        data = {key: None for key in task if key.endswith(origins)}
        data["path"] = options.path
    search = {}
    if "target_lang" in task:
        beams, penalty = _search(options, task)
        search = {"beam": beams, "length_penalty": penalty}
    for name, value in run.evaluate(options.split, search, **data).items():
        print(f"{name}\t{value:.4f}" if isinstance(value, float) else f"{name}\t{value}")


def _generate(options: argparse.Namespace) -> None:
    run = _load(options, needs="prompt", instead="translate")
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    pieces = run.stream(options.prompt, options.tokens, **sampling)
    first = next(pieces)  # what is wrong with the prompt shows before it is repeated
    print(options.prompt.lstrip("\n") + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _translate(options: argparse.Namespace) -> None:
    if options.attention and (len(options.sentences) != 1 or options.n_best):
        raise UserError("--attention: of one SENTENCE and its best translation: give one")
    if options.attention and not options.attention.endswith((".png", ".svg", ".pdf")):
        raise UserError(f"--attention {options.attention}: give a name in .png, .svg or .pdf")
    if options.attention and not Path(options.attention).absolute().parent.is_dir():
        raise UserError(f"--attention {options.attention}: no such folder: make it first")
    run = _load(options, needs="target_lang", instead="generate")
    beams, penalty = _search(options, run.config["task"])
    how = {"beams": max(beams, options.n_best or 1), "length_penalty": penalty}
    said = count(1)
    told: set[str] = set()

    def warn(sentences: Sequence[str]) -> None:
        if new := [c for c in run.unknown(sentences) if c not in told]:
            told.update(new)
            letters = " ".join(map(repr, new))
            print(f"seqzoo: not in its vocabulary: {letters}", file=sys.stderr, flush=True)

    def say(sentences: Sequence[str]) -> None:
        warn(sentences)
        if not options.n_best:
            print(*run.translate(sentences, **how), sep="\n", flush=True)
            return
        for best in run.n_best(sentences, **how):
            number = next(said)
            for text, score in best[: options.n_best]:
                print(f"{number}\t{score:.4f}\t{text}", flush=True)

    if options.attention:
        warn(options.sentences)
        text, figure = run.align(options.sentences[0], **how)
        figure.savefig(options.attention)
        print(text)
        return
    if options.sentences:
        say(options.sentences)
        return
    at_once = 1 if sys.stdin.isatty() else 512
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # whatever the locale is
    try:
        lines = (line.rstrip("\r\n") for line in sys.stdin)
        while some := list(islice(lines, at_once)):
            say(some)
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is not {error.encoding} at byte {error.start}: convert it first"
        ) from None


def _inspect(options: argparse.Namespace) -> None:
    asked = {"needs": "prompt", "instead": "translate"}
    runs = [_load(options, folder=folder, **asked) for folder in options.folder]
    from seqzoo.analysis import inspect as inspection

    found = {}
    for run in runs:
        seen = inspection.look(run, length=options.length, texts=options.texts)
        found[run.folder] = run.config["model"]["name"], seen
        print(*inspection.write(*found[run.folder], run.folder), sep="\n")
    if len(found) > 1:
        out = Path(options.out or f"runs/inspect/{datetime.now():%Y-%m-%d_%H-%M-%S}")
        print(*inspection.write_together(list(found.values()), out), sep="\n")


def _new(out: str) -> Path:
    """What --out names, where there is nothing yet."""
    path = Path(out).absolute()
    if path.exists():
        raise UserError(f"--out {out}: exists already: give a new name")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file: give a name elsewhere")
    return Path(out)


def _export(options: argparse.Namespace) -> None:
    out = _new(options.out)
    from seqzoo.models.zoo import head

    if head(config.read_config(Path(options.folder))["model"]) != "decoder_only":
        raise UserError(
            f"{options.folder}: no format here has encoders: export a head=decoder_only"
        )
    run = _load(options)
    from seqzoo.exchange import hf, rwkv

    if options.format == "rwkv":
        rwkv.export_rwkv(run, out)
        print(f"{out}: for the rwkv package")
    else:
        print(f"{out}: for transformers' {hf.export_hf(run, out)}")


# ---- other commands


def _import(options: argparse.Namespace) -> None:
    out = _new(options.out)
    for option in (options.file, options.vocabulary):
        if option is not None and not Path(option).is_file():
            raise UserError(f"{option}: no such file")
    from seqzoo.exchange.rwkv import import_rwkv

    vocabulary = Path(options.vocabulary) if options.vocabulary else None
    keys = import_rwkv(Path(options.file), out, vocabulary)
    print(f"{out}: " + ", ".join(f"{key} {value}" for key, value in keys.items()))


def _compare(options: argparse.Namespace) -> None:
    from seqzoo.analysis import compare

    out = options.out or f"runs/compare/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    found = {
        name: any(any(Path(folder).rglob(name)) for folder in options.folders)
        for name in ("bench.json", "metrics.jsonl")
    }
    if found["bench.json"] and any((Path(f) / "bench.json").exists() for f in options.folders):
        if found["metrics.jsonl"]:
            raise UserError("benches and training runs do not mix: give two benches, or runs")
    if found["bench.json"] and not found["metrics.jsonl"]:
        for option in ("metric", "out"):
            if getattr(options, option):
                raise UserError(
                    f"--{option}: of training runs; two benches are printed side by side"
                )
        table, agree, points = compare.benches(compare.find(options.folders, "bench.json"))
        print(f"{table}\n{agree} of {points} points agree within the noise of both")
        return
    runs = compare.load(compare.find(options.folders))
    metric = compare.pick_metric(runs, options.metric)
    print(compare.write(runs, metric, Path(out)))
    print(f"written to {out}: report.html, and what it shows as .md, .csv, .json, .png, .svg")


def _verify(options: argparse.Namespace) -> int:
    from seqzoo.models.zoo import ALIASES, FAMILIES, family

    names = [ALIASES.get(name, name) for name in options.models] or list(FAMILIES)
    for name in names:
        family(name)
    from seqzoo.laws import verify

    return 0 if verify(names) else 1


def _dashboard(options: argparse.Namespace) -> None:
    folder = Path(options.folder)
    if not any(folder.rglob("events.out.tfevents.*")):
        raise UserError(
            f"{folder}: no TensorBoard logs in it: run seqzoo train first, or give another folder"
        )
    from threading import Event

    from tensorboard import program

    board = program.TensorBoard()
    board.configure(
        logdir=str(folder),
        port=options.port,
        host=options.host,
        reload_interval=15,
        load_fast="false",  # else it prints a note about itself
    )
    try:
        url = board.launch().rstrip("/")
    except program.TensorBoardServerException as error:
        raise UserError(f"--port {options.port}: {error}: give another, or 0 for any") from None
    views = {
        "throughput": f"{url}/?smoothing=0&tagFilter=tokens_per_second%7Cms_per_token#timeseries",
        "curves": f"{url}/?smoothing=0#timeseries",
        "what they wrote": f"{url}/#text",
        "hyper-parameters": f"{url}/#hparams",
    }
    if any(folder.rglob("projector_config.pbtxt")):
        views["embeddings"] = f"{url}/#projector"
    if any(folder.rglob("bench.json")):  # one chart with all families is what a bench is for
        views = {"bench": f"{url}/#custom_scalars&_smoothingWeight=0", **views}
    print(f"TensorBoard shows {folder}:")
    for name, link in views.items():
        print(f"  {name:<17} {link}")
    print("Ctrl-C stops it.", flush=True)
    if not options.no_browser:
        _open(next(iter(views.values())))
    try:
        Event().wait()
    except KeyboardInterrupt:
        print()


def _open(link: str) -> None:
    """In a browser, where there is a screen to show one on."""
    import os
    import webbrowser

    screen = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if screen and sys.stdout.isatty():
        webbrowser.open(link)


def _completion(options: argparse.Namespace) -> None:
    from seqzoo.cli import completion

    if options.line is None:
        print(completion.script(options.shell), end="")
    else:
        print(*completion.candidates(options.line, subparsers(parser())), sep="\n")
