"""Peak memory of training one long sequence, each model in processes of its own (`seqzoo bench`
measures it in the same way)."""

from __future__ import annotations

from typing import Any

from timing import MIB, Options, Row
from training_pairs import PARAMETERS, TINY_PARAMETERS, VOCAB_SIZE, sized

from seqzoo.bench import measure
from seqzoo.bench.plan import BenchSettings, Point
from seqzoo.bench.runner import OK, Server
from seqzoo.config import files

MODELS = ("transformer", "linear_transformer", "rwkv4", "rwkv7")
LIMIT = 600.0  # seconds that a measurement may take
ROUNDS = 3  # at most: peak memory hardly differs between them


def settings(options: Options) -> BenchSettings:
    """Those of `seqzoo bench`, for the machine and for memory."""
    own: dict[str, Any] = {"parameters": None, "vocab_size": VOCAB_SIZE, "threads": options.threads}
    own |= {"seconds": 0.01, "max_step_seconds": LIMIT / 10, "device": str(options.device)}
    return BenchSettings(**{**files.defaults("bench", "default"), **own})


def memory(options: Options, server: Server, length: int) -> list[Row]:
    """Peak memory over what the process holds before there is a model: families beside our
    Transformer, at about as many parameters.

    Raises:
        RuntimeError: a process failed.
    """
    length = options.length(length)
    parameters = TINY_PARAMETERS if options.tiny else PARAMETERS
    sizes = {name: sized(name, parameters) for name in MODELS}
    peaks: dict[str, list[float]] = {name: [] for name in MODELS}
    for _ in range(min(options.rounds, ROUNDS)):
        for name in MODELS:
            call = (measure.point, Point(name, "train", length, 1), sizes[name], settings(options))
            status, found = server.run(*call, timeout=LIMIT)
            if status != OK:
                raise RuntimeError(f"{name}: {status}: {found}")
            peaks[name].append((found["peak_bytes"] - found["base_bytes"]) / MIB)
    work = "peak memory of training {} B1 T{:,}"
    return [
        Row(work.format(name, length), "MiB", "seqzoo transformer", peaks[name], peaks[MODELS[0]])
        for name in MODELS
    ]
