"""What is learnt: data, loss, metrics, samples.

A task is made in two steps, so that a wrong request is refused before torch is loaded: `prepare`
reads the data, and `make` wraps it. To add a task: a file in ``tasks/``, a line here, and
``configs/task/NAME.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from seqzoo.config import check, check_keys, defaults, nearest
from seqzoo.errors import UserError

if TYPE_CHECKING:
    from seqzoo.data.tokenizers import Tokenizer
    from seqzoo.tasks.task import Task


@dataclass(frozen=True)
class Entry:
    """Where a task's data is read (torch-free) and where its class is; and the values allowed for
    its keys."""

    data: str
    task: str
    choices: Mapping[str, tuple[Any, ...]]


TOKENIZERS = ("char", "byte", "bpe")
ENCODING_ERRORS = ("strict", "replace")
TASKS: dict[str, Entry] = {
    "charlm": Entry(
        "seqzoo.data.corpora:load",
        "seqzoo.tasks.charlm:CharLM",
        {
            "tokenizer": TOKENIZERS,
            "encoding_errors": ENCODING_ERRORS,
            "carry": ("auto", True, False),
        },
    ),
    "translation": Entry(
        "seqzoo.data.pairs:load",
        "seqzoo.tasks.translation:Translation",
        {
            "tokenizer": TOKENIZERS,
            "encoding_errors": ENCODING_ERRORS,
            "long_pairs": ("drop", "cut"),
        },
    ),
}


def entry(name: str) -> Entry:
    """The entry of a task's name.

    Raises:
        UserError: no such task; the nearest name is offered.
    """
    if name not in TASKS:
        raise UserError(f"task={name}: no such task{nearest(name, TASKS)}")
    return TASKS[name]


def check_task(keys: Mapping[str, Any]) -> None:
    """Refuse a task configuration with a key or a value that is not allowed."""
    choices = entry(keys["name"]).choices
    check_keys(
        "task",
        keys,
        {k: keys.get(k) if k in choices else v for k, v in defaults("task", keys["name"]).items()},
    )
    check("task", keys, choices=choices)


def prepare(
    keys: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    source_tokenizer: Tokenizer | None = None,
    *,
    whole: bool = False,
) -> Any:
    """Read, split and encode the data a task's configuration names. Loads no torch.

    Args:
        tokenizer: one that exists already, instead of one made for this data.
        source_tokenizer: the source's, where it has another.
        whole: nothing is held out: all of the data is `val`, for a model that was trained on other
            data.

    Raises:
        UserError: data that is missing, empty, too short, or not text.
    """
    keys = {**defaults("task", keys["name"]), **keys}  # a run may be older than a key
    same = source_tokenizer is None or source_tokenizer is tokenizer
    apart = {} if same else {"source_tokenizer": source_tokenizer}
    return _load(entry(keys["name"]).data)(keys, tokenizer, **apart, whole=whole)


def vocabularies(data: Any) -> dict[str, int]:
    """The sizes that `build` asks for, of prepared data."""
    sizes = {"vocab_size": data.tokenizer.vocab_size}
    source = getattr(data, "source_tokenizer", data.tokenizer)
    if source is not data.tokenizer:
        sizes["source_vocab_size"] = source.vocab_size
    return sizes


def make(keys: Mapping[str, Any], data: Any, *, seed: int) -> Task:
    """The task over prepared data. `seed` sets the order of the batches."""
    keys = {**defaults("task", keys["name"]), **keys}
    task: Task = _load(entry(keys["name"]).task)(keys, data, seed=seed)
    return task


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
