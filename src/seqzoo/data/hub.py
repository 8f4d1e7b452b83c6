"""Data sets of the Hugging Face hub, read with the library `datasets`."""

import os
import socket
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from seqzoo.data.parts import Row
from seqzoo.errors import UserError

SPLITS = ("train", "validation", "test")  # the hub's names of our parts, in their order


def load_hub(name: str, subset: str | None, *, instead: str, **options: Any) -> Any:
    """`datasets.load_dataset`, with a UserError for every failure.

    A hub that cannot be reached is not waited for; what was downloaded before is still found.

    Args:
        instead: what else can be done, the end of the message.
    """
    _give_up_early_without_network()
    try:
        import datasets

        return datasets.load_dataset(name, subset, **options)
    except Exception as error:  # some ten unrelated types mean that a data set cannot be had
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"task.corpus: cannot load {name}: {reason}: check name and network, or {instead}"
        ) from None


def read_splits(
    name: str, subset: str | None, read: Callable[[Any], list[Row]]
) -> list[list[Row] | None]:
    """The rows that `read` finds in each split of a data set: train, validation, test.

    Raises:
        UserError: as `load_hub`, or no split `train`.
    """
    splits = load_hub(name, subset, instead="give a file with task.path")
    if "train" not in splits:
        names = ", ".join(splits)
        raise UserError(f"task.corpus: {name} has no split train, only {names}: try another")
    return [read(splits[split]) if split in splits else None for split in SPLITS]


def check_text_column(name: str, dataset: Any, column: str) -> None:
    """Refuse a column that is missing or holds no text."""
    columns = [
        key
        for key, feature in dataset.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    if column not in columns:
        raise UserError(
            f"task.column: {name} has no text column {column!r}: use one of {', '.join(columns)}"
        )


def _give_up_early_without_network() -> None:
    """Set HF_HUB_OFFLINE if the hub's host has no address: its client would retry for 23 s."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
