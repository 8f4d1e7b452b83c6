"""Calls timed in turns, and what comes of them: a row with two figures and their ratio.

Everything of one row is measured in one process, A B A B: what slows the machine for some seconds
then slows both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from seqzoo.bench.measure import timed
from seqzoo.report.text import number
from seqzoo.training.device import keep_freed_memory

CPU = torch.device("cpu")
WARM_UP = 3  # calls before the first that counts: they allocate, choose kernels and compile
MAX_REPEATS = 2000
MIB = 2**20

Calls = Mapping[str, Callable[[], object]]  # by the name of what is called


class Shape(NamedTuple):
    """The size of a model and of a batch."""

    n_layers: int
    dim: int
    n_heads: int
    batch_size: int
    length: int

    def __str__(self) -> str:
        return f"{self.n_layers}x{self.dim} B{self.batch_size} T{self.length:,}"

    @property
    def tokens(self) -> int:
        return self.batch_size * self.length


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure.

    Attributes:
        rounds: turns of each call.
        seconds: how long a turn lasts, at least; short calls are repeated in it.
        threads: of PyTorch; None: PyTorch's own number.
        tiny: small shapes, to see that everything runs. The figures then mean nothing.
        device: where models and tensors are.
    """

    rounds: int = 15
    seconds: float = 0.3
    threads: int | None = None
    tiny: bool = False
    device: torch.device = CPU

    def prepare(self) -> None:
        """Set up this process as the trainer sets up its own, for both sides alike."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        keep_freed_memory()
        torch.manual_seed(0)
        build_on(self.device)

    def size(self, shape: Shape) -> Shape:
        """The shape to measure."""
        return Shape(2, 32, 2, 2, 16) if self.tiny else shape

    def length(self, length: int) -> int:
        """The number of tokens to measure."""
        return min(length, 32) if self.tiny else length


@dataclass(frozen=True)
class Row:
    """One comparison: our figure and the peer's in every round.

    Attributes:
        unit: of both; of a rate (`tok/s`) more is better, of anything else less.
        peer: what the figure stands beside.
        note: what else was measured.
    """

    work: str
    unit: str
    peer: str
    ours: Sequence[float]
    theirs: Sequence[float]
    note: str = field(default="")

    @property
    def ratios(self) -> list[float]:
        """Of every round: 2 is a rate twice as high as the peer's, or half of its time."""
        pairs = zip(self.ours, self.theirs, strict=True)
        if self.unit.endswith("/s"):
            return [ours / theirs for ours, theirs in pairs]
        return [theirs / ours for ours, theirs in pairs]

    def cells(self) -> list[str]:
        """The row of the table, in the order of `HEAD`."""
        low, middle, high = quartiles(self.ratios)
        return [
            self.work,
            self.unit,
            spread(self.ours),
            spread(self.theirs),
            self.peer,
            number(middle),
            f"{number(low)}-{number(high)}",
            self.note,
        ]


HEAD = ["work", "unit", "seqzoo", "peer", "which", "ratio", "its quartiles", "also"]


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    given = list(values)
    if len(given) == 1:
        return given[0], given[0], given[0]
    low, middle, high = statistics.quantiles(given, n=4, method="inclusive")
    return low, middle, high


def spread(values: Iterable[float]) -> str:
    """The median, and half of the distance between the quartiles in percent of it."""
    low, middle, high = quartiles(values)
    return f"{number(middle)} ± {100 * (high - low) / 2 / middle:.0f} %"


def build_on(device: torch.device) -> None:
    """Tensors and models are made on this device from now on."""
    torch.set_default_device(None if device.type == "cpu" else device)


def alternate(calls: Calls, options: Options) -> dict[str, list[float]]:
    """Seconds that each call takes, one number a round: every call has its turn in every round."""
    build_on(CPU)  # where another device is the default, every call of torch takes longer
    repeats = {}
    for name, call in calls.items():
        for _ in range(WARM_UP - 1):
            call()
        once, _ = timed(call, options.device)
        repeats[name] = max(1, min(MAX_REPEATS, round(options.seconds / once)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            times[name].append(timed(call, options.device, repeats[name])[0])
    build_on(options.device)
    return times


def compare(
    work: str,
    options: Options,
    *,
    ours: Calls,
    peers: Calls,
    tokens: int | None = None,
    note: str = "",
) -> Row:
    """Time our calls and the peers' in turns.

    The first of ours counts, as it is what a user of seqzoo gets, and the fastest of the peers, as
    it is what a user of theirs can have. All other figures are in the note.

    Args:
        tokens: read by one call: the figures are then tokens a second; None: milliseconds a call.
    """
    times = alternate({**ours, **peers}, options)
    chosen = next(iter(ours))
    best = min(peers, key=lambda name: statistics.median(times[name]))
    unit = "ms" if tokens is None else "tok/s"
    figures = {name: rates(taken, tokens) for name, taken in times.items()}
    others = [
        f"{name} {number(statistics.median(values))}"
        for name, values in figures.items()
        if name not in (chosen, best)
    ]
    notes = "; ".join(filter(None, (f"seqzoo: {chosen}", *others, note)))
    return Row(work, unit, best, figures[chosen], figures[best], notes)


def rates(seconds: Sequence[float], tokens: int | None) -> list[float]:
    """Tokens a second, or milliseconds where there are none."""
    return [1000 * taken if tokens is None else tokens / taken for taken in seconds]
