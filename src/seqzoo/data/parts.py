"""Rows of two texts in three parts: held out without overlap, and hashed."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from seqzoo.errors import UserError

PARTS = ("train", "val", "test")
Row = tuple[str, str]

_HELD_OUT = 10  # validation and test are each at most one tenth of all rows


@dataclass(frozen=True)
class Rows:
    """Rows of two texts in three parts, their name, and one line about them for people."""

    name: str
    note: str
    train: list[Row]
    val: list[Row]
    test: list[Row]
    sha256: str  # of the rows of all parts, in their order

    @classmethod
    def of(cls, name: str, note: str, train: list[Row], val: list[Row], test: list[Row]) -> Self:
        """Rows with their hash, and their numbers in the note."""
        sha256 = hashlib.sha256()
        for part in (train, val, test):
            lines = "".join(f"{first}\t{second}\n" for first, second in part)
            sha256.update(f"{len(part)}\n{lines}".encode())
        note = f"{len(train):,} + {len(val):,} + {len(test):,} {note}"
        return cls(name, note, train, val, test, sha256.hexdigest())

    def as_validation(self) -> Self:
        """All rows as validation."""
        return replace(self, train=[], val=self.train + self.val + self.test, test=[])

    def column(self, part: str, index: int) -> list[str]:
        """The first (0) or second (1) texts of a part."""
        return [row[index] for row in getattr(self, part)]


def held_out_size(total: int, wanted: int) -> int:
    """The number of `total` rows to hold out for a part: `wanted`, at most a tenth of all."""
    return min(wanted, total // _HELD_OUT)


def hold_out(
    name: str, parts: Sequence[list[Row] | None], *, key: int, unit: str, val: int, test: int
) -> list[list[Row]]:
    """Train, validation and test, of which those that are None are taken out of train.

    All rows with one text go to the same part, in the order of the texts' hashes.

    Args:
        name: of the data, for messages.
        key: the column, 0 or 1, with the text that no two parts may share.
        unit: ends the names of the keys for the sizes: `pairs` of `task.val_pairs`.
        val, test: rows to hold out; each at most a tenth of all.

    Raises:
        UserError: too few rows.
    """
    train, *others = parts
    assert train is not None
    counts = Counter(row[key] for row in train)
    order = sorted(counts, key=lambda text: hashlib.sha256(text.encode()).digest())
    complete = [train]
    for part, given, wanted in zip(PARTS[1:], others, (val, test), strict=True):
        if given is None:
            chosen = _choose(order, counts, held_out_size(len(train), wanted))
            if wanted and not chosen:
                raise UserError(
                    f"task.{part}_{unit}: {name} has {len(counts)} different "
                    f"{('sources', 'texts')[key]} in {len(train)} rows, of which none can be held "
                    f"out: give more of them, a larger task.{part}_{unit}, or a file for {part}"
                )
            given = [row for row in complete[0] if row[key] in chosen]
            complete[0] = [row for row in complete[0] if row[key] not in chosen]
            order = [text for text in order if text not in chosen]
        complete.append(given)
    return complete


def _choose(order: Iterable[str], counts: Mapping[str, int], room: int) -> set[str]:
    """The first texts of `order` whose rows fit into `room`, passing over those that do not."""
    chosen = set()
    for text in order:
        if counts[text] <= room:
            chosen.add(text)
            room -= counts[text]
    return chosen
