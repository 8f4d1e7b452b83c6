"""The data of classification: texts with a label each, in three parts, encoded.

The texts are speeches of Shakespeare's plays (or a plugin's corpus), files, or a data set of the
hub. A text that is held out is in no other part.
"""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqzoo.config.combinations import TABLES, corpus_or_files
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, EncodingErrors, Path, Text
from seqzoo.config.values import Tokenizer as TokenizerKind
from seqzoo.data.encoding import encode
from seqzoo.data.files import read_table
from seqzoo.data.hub import check_text_column, read_splits
from seqzoo.data.named import is_hub_name, make_corpus
from seqzoo.data.parts import PARTS, Row, Rows, hold_out
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError, unknown

LABELLED_CORPORA = {  # functions that return `Labelled`; a plugin's `labelled_corpora` adds to them
    "shakespeare": "seqzoo.data.plays:speeches",
}
SPECIALS = ("<pad>", "<unk>")

_FORMAT = 1  # of the cached files: raise it when their content would change
_MAX_NOTED = 8  # classes whose shares are in the note

Labelled = Rows  # of a label and a text


@dataclass(frozen=True)
class Examples:
    """One part as ids."""

    texts: list[np.ndarray]  # N arrays of token ids, each at most max_len long
    classes: np.ndarray  # (N,) ids of the labels


@dataclass(frozen=True)
class EncodedLabelled:
    """Labelled texts as ids. The first ids of the tokenizer are SPECIALS."""

    name: str
    note: str
    sha256: str
    tokenizer: Tokenizer
    labels: Tokenizer  # the classes, sorted by name
    train: Examples
    val: Examples
    test: Examples


@checked(corpus_or_files)
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    corpus: Text | None,
    subset: Text | None,
    column: Text,
    label_column: Text,
    path: Path | None,
    val_path: Path | None,
    test_path: Path | None,
    encoding_errors: EncodingErrors,
    min_chars: Count,
    val_texts: Count,
    test_texts: Count,
    tokenizer: TokenizerKind,
    vocab_size: Count,
    max_len: Count,
) -> EncodedLabelled:
    """The data of the task `classification`.

    Args:
        existing: a `tokenizer` and the `labels` to use, instead of ones made for these texts.
        whole: hold nothing out: all texts are `val`, and there is neither `train` nor `test`.

    Raises:
        UserError: data that is missing, is no text, or has less than two labels; a label that the
            training data lacks.
    """
    keys = dict(locals())
    if whole:
        data = read_labelled({**keys, "val_texts": 0, "test_texts": 0}).as_validation()
    else:
        data = read_labelled(keys)
    labels = existing.get("labels") or Tokenizer.of_labels(_classes(data))
    _check_labels(data, labels)
    tokenizers, ids = encode(
        "labelled",
        {"format": _FORMAT, "sha256": data.sha256},
        {"tokenizer": {part: data.column(part, 1) for part in PARTS}},
        existing,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        specials=SPECIALS,
    )
    n_cut = sum(len(one) > max_len for texts in ids.values() for one in texts)
    note = f"; {n_cut:,} texts cut to task.max_len={max_len} tokens" if n_cut else ""
    return EncodedLabelled(
        name=data.name,
        note=data.note + note,
        sha256=data.sha256,
        tokenizer=tokenizers["tokenizer"],
        labels=labels,
        **{part: _examples(data, part, ids[part], labels, max_len) for part in PARTS},
    )


def read_labelled(keys: Mapping[str, Any]) -> Labelled:
    """Labelled texts from files if some are given, else from the corpus; Shakespeare's speeches if
    there is none.

    A part without a file of its own, or a split of the hub, is held out of the train part.

    Args:
        keys: those of `load`.

    Raises:
        UserError: whatever cannot be read.
    """
    path, corpus = keys["path"], keys["corpus"] or "shakespeare"
    if path is not None:
        name, note = pathlib.Path(path).name, f"texts of {path}"
        parts = [_read_table(keys, option) for option in TABLES]
    elif is_hub_name("labelled_corpora", LABELLED_CORPORA, corpus):
        name, note, parts = corpus, f"texts of {corpus}", _read_hub(corpus, keys)
    else:
        made: Labelled = make_corpus("labelled_corpora", LABELLED_CORPORA, corpus, keys)
        return made
    sizes = {"val": keys["val_texts"], "test": keys["test_texts"]}
    return make_labelled(name, note, *hold_out(name, parts, key=1, unit="texts", **sizes))


def make_labelled(
    name: str, note: str, train: list[Row], val: list[Row], test: list[Row]
) -> Labelled:
    """Labelled texts with their hash, and in the note their numbers and the balance of classes."""
    counts = Counter(label for label, _ in train or val)
    shares = {label: 100 * counts[label] / counts.total() for label in sorted(counts)}
    if len(shares) <= _MAX_NOTED:
        balance = ", ".join(f"{label} {share:.0f}%" for label, share in shares.items())
    else:
        least, most = min(shares.values()), max(shares.values())
        balance = f"{len(shares)} classes of {least:.1f}% to {most:.1f}%"
    return Rows.of(name, f"{note}: {balance}", train, val, test)


def _read_table(keys: Mapping[str, Any], option: str) -> list[Row] | None:
    path = keys[option]
    if path is None:
        return None
    rows = read_table(path, f"task.{option}", keys["encoding_errors"], ("label", "text"))
    for number, (label, text) in enumerate(rows, 1):
        if not (label and text):
            raise UserError(
                f"task.{option}: {path} has no {'text' if label else 'label'} in line {number}: "
                "write label<TAB>text"
            )
    return rows


def _read_hub(name: str, keys: Mapping[str, Any]) -> list[list[Row] | None]:
    """The splits of a data set of the hub; rows without a text are left out."""
    column, label_column = keys["column"], keys["label_column"]

    def read(dataset: Any) -> list[Row]:
        check_text_column(name, dataset, column)
        if label_column not in dataset.features:
            raise unknown("task.label_column", label_column, dataset.features)
        names = getattr(dataset.features[label_column], "names", None)  # of the numbers, if known
        labels = (str(names[i] if names else i) for i in dataset[label_column])
        return [row for row in zip(labels, dataset[column], strict=True) if row[1]]

    return read_splits(name, keys["subset"], read)


def _classes(data: Labelled) -> list[str]:
    """The labels of the training data, sorted."""
    classes = sorted(set(data.column("train", 0)))
    if len(classes) < 2:
        raise UserError(
            f"{data.name} has the label {classes[0]!r} alone: give texts of two classes or more"
            if classes
            else f"{data.name} has no text to train on: give labelled texts"
        )
    return classes


def _check_labels(data: Labelled, labels: Tokenizer) -> None:
    """Refuse a label that is no class."""
    known = {labels.piece(index) for index in range(labels.vocab_size)}
    for part in PARTS:
        for label in sorted(set(data.column(part, 0)) - known):
            raise unknown("label", label, known, f"; the {part} part of {data.name} has it")


def _examples(
    data: Labelled, part: str, texts: Sequence[np.ndarray], labels: Tokenizer, max_len: int
) -> Examples:
    index = {labels.piece(i): i for i in range(labels.vocab_size)}
    classes = np.array([index[label] for label in data.column(part, 0)], np.int64)
    return Examples([ids[:max_len] for ids in texts], classes)
