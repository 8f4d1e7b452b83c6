"""The data of a language model: one text, split in two and encoded.

The text is a built-in corpus or a plugin's, a file, or a data set of the hub. What is slow to make
is kept in the cache folder (see `cache`).
"""

import hashlib
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from seqzoo.config.schema import checked
from seqzoo.config.values import Count, EncodingErrors, Path, Text
from seqzoo.config.values import Tokenizer as TokenizerKind
from seqzoo.data.cache import cached
from seqzoo.data.files import read_text, size
from seqzoo.data.hub import check_text_column, load_hub
from seqzoo.data.named import is_hub_name, make_corpus
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError

CORPORA = {  # functions that return a `Corpus`; a plugin's `corpora` adds to them
    "shakespeare": "seqzoo.data.plays:shakespeare",
    "python": "seqzoo.data.source_code:python",
    "tinyshakespeare": "seqzoo.data.plays:tiny_shakespeare",
}
HeldOut = Annotated[float, Field(ge=1e-6, le=0.9)]

_FORMAT = 1  # of the cached arrays: raise it when their content would change


@dataclass(frozen=True)
class Corpus:
    """A text, its name, and one line about it for people."""

    name: str
    text: str
    note: str


@dataclass(frozen=True)
class EncodedCorpus:
    """A corpus as ids: `train` and `val` are arrays (T,) mapped from disk."""

    name: str
    note: str
    sha256: str
    tokenizer: Tokenizer
    train: np.ndarray
    val: np.ndarray
    val_chars: int
    val_sha256: str


@checked()
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    corpus: Text | None,
    path: Path | None,
    encoding_errors: EncodingErrors,
    subset: Text | None,
    column: Text,
    val_fraction: HeldOut,
    val_max_chars: Count,
    tokenizer: TokenizerKind,
    vocab_size: Count,
    seq_len: Count,
) -> EncodedCorpus:
    """The data of the task `charlm`.

    Args:
        existing: a `tokenizer` to use, instead of one made for this text.
        whole: do not split: all of the text is `val` (and `train`).
        seq_len: tokens that the training text needs at least.

    Raises:
        UserError: text that is missing, is no text, or is too short.
    """
    text = read_corpus(corpus, path, column=column, subset=subset, encoding_errors=encoding_errors)
    if whole:
        parts = text.text, text.text
    else:
        parts = split_text(text.text, val_fraction=val_fraction, val_max_chars=val_max_chars)
    encoded = encode_corpus(text, *parts, existing, tokenizer=tokenizer, vocab_size=vocab_size)
    if len(encoded.val) < 2:
        raise UserError(
            f"{text.name} has {len(encoded.val)} tokens to measure on, and 2 are the least: give "
            "a longer text, or larger task.val_fraction and task.val_max_chars"
        )
    if not existing and len(encoded.train) <= seq_len:
        raise UserError(
            f"{text.name} has {len(encoded.train):,} tokens to train on, and "
            f"task.seq_len={seq_len} needs more: give a longer text, or "
            f"task.seq_len={max(1, len(encoded.train) // 2)}"
        )
    return encoded


def read_corpus(
    corpus: str | None,
    path: str | None,
    *,
    column: str = "text",
    subset: str | None = None,
    split: str = "train",
    encoding_errors: str = "strict",
) -> Corpus:
    """A corpus by its name, a UTF-8 file, or `owner/name` of the hub.

    A path goes before a corpus, so that a recipe can be used on another file. With neither it is
    Shakespeare's plays if they are installed, otherwise the standard library's source.

    Args:
        column, subset, split: choose within a data set of the hub.
        encoding_errors: of files; see `read_text`.

    Raises:
        UserError: whatever cannot be read.
    """
    if path is not None:
        text = read_text(path, "task.path", encoding_errors)
        return Corpus(pathlib.Path(path).name, text, f"the file {path}, {size(text)}")
    if corpus is None:
        from seqzoo.data.plays import plays_folder

        corpus = "python" if plays_folder() is None else "shakespeare"
    if is_hub_name("corpora", CORPORA, corpus):
        return _hub_corpus(corpus, column, subset, split)
    made: Corpus = make_corpus("corpora", CORPORA, corpus, {})
    return made


def _hub_corpus(name: str, column: str, subset: str | None, split: str) -> Corpus:
    dataset = load_hub(name, subset, instead="give a file with task.path", split=split)
    check_text_column(name, dataset, column)
    text = "\n".join(line or "" for line in dataset[column])
    return Corpus(name, text, f"{len(dataset):,} rows of {name}, {size(text)}")


def split_text(text: str, *, val_fraction: float, val_max_chars: int) -> tuple[str, str]:
    """Train and validation text: the last `val_fraction` of it, at most `val_max_chars`, validates.

    The cut is at `int((1 - val_fraction) * len(text))`, nanoGPT's, unless the maximum is reached.

    Raises:
        UserError: one of the two would be empty.
    """
    start = max(int(len(text) * (1 - val_fraction)), len(text) - val_max_chars)
    if not 0 < start < len(text):
        raise UserError(
            f"task.val_fraction ({val_fraction}) leaves a part of {len(text)} characters empty: "
            "give a longer text or another fraction"
        )
    return text[:start], text[start:]


def encode_corpus(
    corpus: Corpus,
    train: str,
    val: str,
    existing: Mapping[str, Tokenizer] = {},
    *,
    tokenizer: str,
    vocab_size: int,
) -> EncodedCorpus:
    """Encode both parts, with the existing `tokenizer` or a new one, cached by content.

    A new `char` vocabulary has the characters of the whole text, as nanoGPT's; `bpe` learns from
    the train part alone.
    """
    sha256 = hashlib.sha256(corpus.text.encode()).hexdigest()

    def build(folder: pathlib.Path) -> None:
        known = corpus.text if tokenizer == "char" else train
        trained = Tokenizer.train(tokenizer, [known], vocab_size=vocab_size)
        trained.save(folder / "tokenizer.json")
        np.save(folder / "train.npy", trained.encode(train))
        np.save(folder / "val.npy", trained.encode(val))

    if existing:
        used = existing["tokenizer"]
        train_ids, val_ids = used.encode(train), used.encode(val)
    else:
        key = {
            "format": _FORMAT,
            "sha256": sha256,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size if tokenizer == "bpe" else 0,
            "train_chars": len(train),
        }
        folder = cached("corpora", key, build)
        used = Tokenizer.load(folder / "tokenizer.json")
        train_ids = np.load(folder / "train.npy", mmap_mode="r")
        val_ids = np.load(folder / "val.npy", mmap_mode="r")
    val_sha256 = hashlib.sha256(val.encode()).hexdigest()
    return EncodedCorpus(
        corpus.name, corpus.note, sha256, used, train_ids, val_ids, len(val), val_sha256
    )
