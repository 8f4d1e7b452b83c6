"""The data of translation: pairs of sentences in three parts, encoded under one vocabulary for both
sides or one each.

The pairs are made, read from files, or a data set of the hub. The parts share no source, unless
they were given as files of their own.
"""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from seqzoo.config.combinations import (
    TABLES,
    TWINS,
    corpus_or_files,
    lowercase_of_files,
    twins_are_complete,
)
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, EncodingErrors, Flag, LongPairs, Path, Text
from seqzoo.config.values import Tokenizer as TokenizerKind
from seqzoo.data.cache import cached
from seqzoo.data.named import is_hub_name, make_corpus
from seqzoo.data.pair_files import files_of, read_hub, read_tables, read_twins
from seqzoo.data.parts import PARTS, Row, digest, hold_out
from seqzoo.data.sentences import load_encoded, save_encoded
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError

PAIR_CORPORA = {  # functions that return `Pairs`; a plugin's `pair_corpora` adds to them
    "numbers": "seqzoo.data.made:numbers",
    "reverse": "seqzoo.data.made:reversals",
}
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")

_FORMAT = 3  # of the cached files: raise it when their content would change


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, their name, and one line about them for people."""

    name: str
    note: str
    train: list[Row]
    val: list[Row]
    test: list[Row]
    sha256: str


class Sides(NamedTuple):
    """The ids of each sentence of one part, without any special."""

    source: list[np.ndarray]
    target: list[np.ndarray]


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs as ids, under one tokenizer or one a side; its first four ids are SPECIALS."""

    name: str
    note: str
    sha256: str
    tokenizer: Tokenizer  # of the target
    source_tokenizer: Tokenizer  # the same, where the vocabulary is joint
    train: Sides
    val: Sides
    test: Sides
    references: Mapping[str, list[str]]  # the targets of val and test as they were written


@checked(corpus_or_files, twins_are_complete, lowercase_of_files)
def load(
    existing: Mapping[str, Tokenizer] = {},
    whole: bool = False,
    *,
    corpus: Text | None,
    subset: Text | None,
    path: Path | None,
    val_path: Path | None,
    test_path: Path | None,
    source: Path | None,
    target: Path | None,
    val_source: Path | None,
    val_target: Path | None,
    test_source: Path | None,
    test_target: Path | None,
    encoding_errors: EncodingErrors,
    source_lang: Text,
    target_lang: Text,
    limit: Count,
    n_pairs: Count,
    longest: Count,
    val_pairs: Count,
    test_pairs: Count,
    lowercase: Flag,
    tokenizer: TokenizerKind,
    vocab_size: Count,
    joint_vocabulary: Flag,
    max_len: Count,
    long_pairs: LongPairs,
) -> EncodedPairs:
    """The data of the task `translation`.

    Args:
        existing: a `tokenizer`, and a `source_tokenizer` if there are two, to use instead of ones
            made for these pairs.
        whole: hold nothing out: all pairs are `val`, and there is neither `train` nor `test`.

    Raises:
        UserError: files that are missing, are no text or do not match, or no pair that fits in
            `max_len` tokens.
    """
    keys = dict(locals())
    pairs = _whole(keys) if whole else read_pairs(keys)
    if given := existing.get("tokenizer"):
        return _encode_with(pairs, given, existing.get("source_tokenizer", given))
    encoded = encode_pairs(
        pairs, tokenizer=tokenizer, vocab_size=vocab_size, joint=joint_vocabulary
    )
    shortest = min(len(s) + len(t) + 1 for s, t in zip(*encoded.train, strict=True))
    if shortest > max_len and long_pairs == "drop":
        raise UserError(
            f"task.max_len={max_len}: the shortest pair of {pairs.name} has "
            f"{shortest} tokens: give a larger task.max_len"
        )
    return encoded


def read_pairs(keys: Mapping[str, Any]) -> Pairs:
    """Pairs from files if some are given, else from the corpus; spelled numbers if there is none.

    A part without a file of its own, or a split of the hub, is held out of the train part.

    Args:
        keys: those of `load`.

    Raises:
        UserError: whatever cannot be read.
    """
    path, corpus, errors = keys["path"], keys["corpus"] or "numbers", keys["encoding_errors"]
    langs = keys["source_lang"], keys["target_lang"]
    if path is not None and pathlib.Path(path).is_dir():
        name, note = pathlib.Path(path).name, f"pairs of {path}"
        parts = read_twins(files_of(path, *langs), errors)
    elif path is not None:
        name, note = pathlib.Path(path).name, f"pairs of {path}"
        parts = read_tables({option: keys[option] for option in TABLES}, errors)
    elif keys["source"] is not None:
        name = pathlib.Path(keys["source"]).name
        note = f"pairs of {keys['source']} and {keys['target']}"
        parts = read_twins({option: keys[option] for option in TWINS}, errors)
    elif is_hub_name("pair_corpora", PAIR_CORPORA, corpus):
        name, note, parts = corpus, f"pairs of {corpus}", read_hub(corpus, keys["subset"], *langs)
    else:
        made: Pairs = make_corpus("pair_corpora", PAIR_CORPORA, corpus, keys)
        return made
    if keys["lowercase"]:
        note += ", lower-cased"
        parts = [part and [(s.lower(), t.lower()) for s, t in part] for part in parts]
    sizes = {"val": keys["val_pairs"], "test": keys["test_pairs"]}
    return make_pairs(name, note, *hold_out(name, parts, key=0, unit="pairs", **sizes))


def make_pairs(name: str, note: str, train: list[Row], val: list[Row], test: list[Row]) -> Pairs:
    """Pairs with their hash, and their numbers in the note."""
    note = f"{len(train):,} + {len(val):,} + {len(test):,} {note}"
    return Pairs(name, note, train, val, test, digest((train, val, test)))


def _whole(keys: Mapping[str, Any]) -> Pairs:
    """All pairs as validation."""
    pairs = read_pairs({**keys, "val_pairs": 0, "test_pairs": 0})
    return replace(pairs, train=[], val=pairs.train + pairs.val + pairs.test, test=[])


def _encode_with(pairs: Pairs, tokenizer: Tokenizer, source_tokenizer: Tokenizer) -> EncodedPairs:
    """Ids under tokenizers that exist."""
    both = source_tokenizer, tokenizer

    def sides(part: list[Row]) -> Sides:
        texts = zip(both, _columns(part), strict=True)
        return Sides(*(one.encode_many(side) for one, side in texts))

    return EncodedPairs(
        name=pairs.name,
        note=pairs.note,
        sha256=pairs.sha256,
        tokenizer=tokenizer,
        source_tokenizer=source_tokenizer,
        train=sides(pairs.train),
        val=sides(pairs.val),
        test=sides(pairs.test),
        references=_references(pairs),
    )


def encode_pairs(
    pairs: Pairs, *, tokenizer: str, vocab_size: int, joint: bool = True
) -> EncodedPairs:
    """Ids of all sentences, cached by content, under one vocabulary of both sides of the train
    part, or one a side.

    A character that the train part lacks is `<unk>` in a `char` vocabulary.
    """

    def train(sentences: list[str]) -> Tokenizer:
        return Tokenizer.train(
            tokenizer, sentences, vocab_size=vocab_size, specials=SPECIALS, unknown="<unk>"
        )

    def build(folder: pathlib.Path) -> None:
        sources, targets = _columns(pairs.train)
        if joint:
            trained = dict.fromkeys(Sides._fields, train(sources + targets))
        else:
            trained = {"source": train(sources), "target": train(targets)}
            trained["source"].save(folder / "source_tokenizer.json")
        trained["target"].save(folder / "tokenizer.json")
        for part in PARTS:
            both_sides = _columns(getattr(pairs, part))
            for side, sentences in zip(Sides._fields, both_sides, strict=True):
                save_encoded(folder, f"{part}.{side}", sentences, trained[side])

    def sides(part: str) -> Sides:
        return Sides(*(load_encoded(folder, f"{part}.{side}") for side in Sides._fields))

    key = {
        "format": _FORMAT,
        "sha256": pairs.sha256,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size if tokenizer == "bpe" else 0,
        "joint": joint,
    }
    folder = cached("pairs", key, build)
    target = Tokenizer.load(folder / "tokenizer.json")
    return EncodedPairs(
        name=pairs.name,
        note=pairs.note,
        sha256=pairs.sha256,
        tokenizer=target,
        source_tokenizer=target if joint else Tokenizer.load(folder / "source_tokenizer.json"),
        train=sides("train"),
        val=sides("val"),
        test=sides("test"),
        references=_references(pairs),
    )


def _references(pairs: Pairs) -> dict[str, list[str]]:
    return {"val": _columns(pairs.val)[1], "test": _columns(pairs.test)[1]}


def _columns(part: list[Row]) -> tuple[list[str], list[str]]:
    return [source for source, _ in part], [target for _, target in part]
