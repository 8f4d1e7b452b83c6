"""Every key of a bench. The defaults and their meanings stand in configs/bench/default.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, Described, Device, Dtype, Flag, Seconds, shown
from seqzoo.errors import UserError

Mode = Literal["train", "prefill", "decode"]
MODES: tuple[Mode, ...] = ("train", "prefill", "decode")
Modes = Annotated[list[Mode] | Mode, Described("a list of some of train, prefill, decode")]
LENGTHS_FORM = "FIRST..LAST, such as 64..8192, or a list of whole numbers from 1 up: [64,1024]"
Lengths = Annotated[list[Count] | Count | str, Described(LENGTHS_FORM)]


@checked()
@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The `bench` section of a configuration, as it was given.

    Raises:
        UserError: a value that is not allowed.
    """

    lengths: Lengths
    modes: Modes
    parameters: Count | None
    batch_size: Count
    tokens: Count | None
    decode_batch_size: Count
    vocab_size: Count
    rounds: Count
    seconds: Seconds
    max_step_seconds: Seconds
    device: Device
    dtype: Dtype
    threads: Count | None
    compile: Flag

    def __post_init__(self) -> None:
        if not self.modes_in_order():
            raise UserError(f"bench.modes={shown(self.modes)}: give some of {', '.join(MODES)}")
        longest = self.lengths_in_order()[-1]
        if self.tokens is not None and self.tokens < longest:
            raise UserError(
                f"bench.tokens={self.tokens} is less than one sequence of "
                f"bench.lengths={shown(self.lengths)}: try bench.tokens={longest}"
            )

    def modes_in_order(self) -> list[Mode]:
        """The modes to measure, in the order in which they are measured."""
        given = [self.modes] if isinstance(self.modes, str) else self.modes
        return [mode for mode in MODES if mode in given]

    def lengths_in_order(self) -> list[int]:
        """The lengths to measure, ascending, none twice."""
        return parse_lengths(self.lengths)

    def batch_size_at(self, mode: Mode, length: int) -> int:
        """Sequences that are read at once."""
        if mode == "decode":
            return self.decode_batch_size
        return self.batch_size if self.tokens is None else self.tokens // length


def parse_lengths(given: Lengths) -> list[int]:
    """`64..1024` as 64, 128, ..., 1024, in which the last length is always there; or a list.

    Raises:
        UserError: anything else.
    """
    if isinstance(given, str):
        match = re.fullmatch(r"(\d+)\.\.(\d+)", given)
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if 1 <= first <= last:
            doubled = [first << i for i in range((last // first).bit_length())]
            return sorted({*doubled, last})
    elif lengths := [given] if isinstance(given, int) else given:
        return sorted(set(lengths))
    raise UserError(f"bench.lengths={shown(given)}: give {LENGTHS_FORM}")
