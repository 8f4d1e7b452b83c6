"""The rows of a bench: one for each point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # a point, by COLUMNS

COLUMNS = (
    "model mode length batch_size status tokens_per_second milliseconds noise median_milliseconds "
    "spread repeats rounds steady state_bytes peak_bytes base_bytes flops peak_share backend dim "
    "parameters note"
).split()
FIGURES = {  # the column that is a mode's figure
    "train": "tokens_per_second",
    "prefill": "tokens_per_second",
    "decode": "milliseconds",
}


def measured(points: Sequence[Row], model: str, mode: str) -> list[Row]:
    """The rows of a model's mode that have a figure, lengths ascending."""
    rows = [row for row in points if (row["model"], row["mode"]) == (model, mode)]
    return sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["length"])
