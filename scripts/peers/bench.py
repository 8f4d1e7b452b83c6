"""seqzoo beside what a user would pick instead: speed and memory, as one Markdown table.

    python scripts/peers/bench.py [--only NAME ...] [--rounds N] [--threads N] [--device cuda]
        [--out FILE.md]

Every pair is measured in a process of its own, and its sides take turns in it. The peers come with
`pip install -e '.[peers]'`; a pair whose peer is not installed is skipped with a line.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from memory_pairs import settings
from timing import HEAD, Options, Row, Shape

from seqzoo.bench import measure
from seqzoo.bench.runner import FAILED, OK, SKIPPED, Server
from seqzoo.config.schema import load
from seqzoo.errors import UserError
from seqzoo.training.device import float32_products, pick_device

LIMIT = 3600.0  # seconds that a pair may take
NOTES = """\
A figure is the median over rounds, and ± half of the distance between its quartiles. Ratio: of a
rate (tok/s, GFLOP/s) seqzoo over the peer, of a time or of memory the peer over seqzoo; above 1
seqzoo is ahead. Its quartiles are those of the rounds' own ratios."""


@dataclass(frozen=True)
class Pair:
    """A comparison.

    Attributes:
        function: its import path; called with `Options` and the keys, it returns rows.
        needs: modules of its peer.
        compiles: whether it needs a C++ compiler.
        spawns: whether every measurement has a process of its own. The function then runs in this
            one, and is given the `Server` besides.
    """

    function: str
    keys: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    compiles: bool = False
    spawns: bool = False

    def missing(self) -> str:
        """What this machine lacks; empty if nothing."""
        for module in self.needs:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed: pip install -e '.[peers]'"
        compiler = os.environ.get("CXX", "g++")
        if self.compiles and shutil.which(compiler) is None:
            return f"no C++ compiler ({compiler}), which torch.compile needs"
        return ""


def _gpt(*shape: int) -> Pair:
    return Pair("training_pairs:gpt", {"shape": Shape(*shape)}, compiles=True)


def _recurrent(kind: str, batch_size: int = 16) -> Pair:
    shape = Shape(2, 256, 0, batch_size, 512)
    return Pair("training_pairs:recurrent", {"shape": shape, "kind": kind})


def _hub(name: str, *shape: int) -> Pair:
    return Pair(f"training_pairs:{name}", {"shape": Shape(*shape)}, needs=("transformers",))


def _delta(length: int, head: int) -> Pair:
    keys = {"batch_size": 8, "length": length, "channels": 160, "head": head}
    return Pair("operation_pairs:matrix_states", keys)


PAIRS: dict[str, Pair] = {  # a shape: layers, width, heads, batch, tokens
    "gpt-4x128": _gpt(4, 128, 4, 12, 64),
    "gpt-6x384": _gpt(6, 384, 6, 8, 256),
    "gpt-4x256": _gpt(4, 256, 4, 4, 1024),
    "lstm": _recurrent("LSTM"),
    "lstm-b2": _recurrent("LSTM", batch_size=2),
    "gru": _recurrent("GRU"),
    "rnn": _recurrent("RNN"),
    "rwkv4": _hub("rwkv4", 4, 256, 0, 8, 512),
    "mamba2": _hub("mamba2", 6, 144, 4, 8, 256),
    "llama": _hub("llama", 4, 256, 4, 8, 256),
    "mingru": Pair(
        "training_pairs:mingru", {"shape": Shape(3, 160, 0, 8, 256)}, needs=("minGRU_pytorch",)
    ),
    "families-256": Pair("training_pairs:families", {"batch_size": 8, "length": 256}),
    "families-2048": Pair("training_pairs:families", {"batch_size": 1, "length": 2048}),
    "peak": Pair("training_pairs:peak", {"shape": Shape(6, 384, 6, 8, 256)}),
    "delta-16": _delta(256, 16),
    "delta-32": _delta(256, 32),
    "delta-64": _delta(256, 64),
    "delta-2048": _delta(2048, 32),
    "linear-attention": Pair("operation_pairs:attentions", {"lengths": (1024, 4096)}),
    "rwkv4-decoding": Pair(
        "decoding_pairs:rwkv4", {"shape": Shape(4, 256, 0, 1, 1024)}, needs=("rwkv",)
    ),
    "products": Pair("decoding_pairs:products", {"shape": Shape(4, 256, 0, 1, 128)}),
    "beams": Pair("decoding_pairs:beams", {"shape": Shape(3, 256, 0, 1, 128)}),
    "cache": Pair("decoding_pairs:cache", {"shape": Shape(4, 256, 0, 1, 8192)}),
    "weights-4x256": Pair("decoding_pairs:weights", {"shape": Shape(4, 256, 0, 1, 128)}),
    "weights-6x768": Pair("decoding_pairs:weights", {"shape": Shape(6, 768, 0, 1, 128)}),
    "memory": Pair("memory_pairs:memory", {"length": 8192}, spawns=True),
}


def measure_pair(pair: Pair, options: Options) -> list[Row]:
    """In the child process: prepare it, and measure."""
    options.prepare()
    with float32_products(options.device, "bfloat16"):
        rows: list[Row] = load(pair.function)(options, **pair.keys)
    return rows


def report(server: Server, options: Options, names: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The Markdown after every pair, so that a run that is stopped leaves what it has measured; and
    whether a pair has failed.

    A pair that is skipped or fails has a line below the table.
    """
    rows: list[Row] = []
    lines: list[str] = []
    failed = False
    about = machine(server, options)
    print(about, flush=True)
    for name in names:
        start = time.perf_counter()
        status, found = measured(server, PAIRS[name], options)
        if status == OK:
            rows += found
            print(markdown(*(row.cells() for row in found)), flush=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        else:
            print(f"{name}: {status}: {found}", flush=True)
            failed |= status != SKIPPED
            lines.append(f"- {name}: {status}: {str(found).strip().splitlines()[-1]}")
        table = rows and markdown(HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows))
        parts = about, table, "\n".join(lines), NOTES
        yield "\n".join(f"{part}\n" for part in parts if part), failed


def measured(server: Server, pair: Pair, options: Options) -> tuple[str, Any]:
    """How a pair ended, and its rows, or the reason if it did not end well."""
    if lacks := pair.missing():
        return SKIPPED, lacks
    if not pair.spawns:
        return server.run(measure_pair, pair, options, timeout=LIMIT)
    try:
        return OK, load(pair.function)(options, server, **pair.keys)
    except RuntimeError as error:
        return FAILED, str(error)


def markdown(*rows: Sequence[str]) -> str:
    """A table whose columns are not aligned, as the notes are long."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def machine(server: Server, options: Options) -> str:
    """The line about machine, cores, torch, date and precision."""
    status, found = server.run(measure.machine, settings(options), timeout=LIMIT)
    if status != OK:
        raise RuntimeError(found)
    dtype, speed = found["dtype"], found["peak_flops"] / 1e9
    threads = f", {found['threads']} threads" if found["threads"] else ""
    parts = [
        f"{found['name']}, {os.cpu_count()} cores{threads}",
        f"torch {torch.__version__}",
        f"{date.today()}",
        f"trainer.dtype=auto is {dtype} ({speed:,.0f} GFLOP/s in a product of 2,048)",
        f"{options.rounds} rounds" + (", TINY SHAPES" if options.tiny else ""),
    ]
    return "; ".join(parts)


def parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary, epilog=f"pairs: {', '.join(PAIRS)}")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="pairs, or patterns: 'gpt-*'")
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="turns of each side")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:1")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that all runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser()
    given = options.parse_args(arguments)
    for pattern in given.only or ():
        if not any(fnmatch(name, pattern) for name in PAIRS):
            options.error(f"--only {pattern}: choose of {', '.join(PAIRS)}")
    for key in ("rounds", "threads"):
        if (number := getattr(given, key)) is not None and number < 1:
            options.error(f"--{key} {number}: give a number from 1 up")
    names = [n for n in PAIRS if not given.only or any(fnmatch(n, p) for p in given.only)]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models have random weights: nothing is fetched
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of idle processes
    seconds = 0.01 if given.tiny else Options.seconds
    try:
        device = pick_device(given.device, "--device")
    except UserError as error:
        options.error(str(error))
    how = Options(
        rounds=given.rounds,
        seconds=seconds,
        threads=given.threads,
        tiny=given.tiny,
        device=device,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the measuring process ends too
    whole, failed = "", False
    try:
        for whole, failed in report(Server(), how, names):  # noqa: B007 (read below)
            if given.out:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(whole, encoding="utf-8")
    except KeyboardInterrupt:
        print("stopped: what was measured so far is kept", file=sys.stderr)
        return 130
    print(f"\n{whole}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
