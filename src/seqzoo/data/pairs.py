"""The data of translation: pairs of sentences in three parts, encoded under one vocabulary for both
sides or one each.

The pairs are made, read from files, or a data set of the hub. The parts share no source, unless
they were given as files of their own.
"""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from seqzoo.config.combinations import (
    TABLES,
    TWINS,
    corpus_or_files,
    lowercase_needs_files,
    twins_are_complete,
)
from seqzoo.config.schema import checked
from seqzoo.config.values import Count, EncodingErrors, Flag, LongPairs, Path, Text
from seqzoo.config.values import Tokenizer as TokenizerKind
from seqzoo.data.encoding import encode
from seqzoo.data.named import is_hub_name, make_corpus
from seqzoo.data.pair_files import files_of, read_hub, read_tables, read_twins
from seqzoo.data.parts import PARTS, Rows, hold_out
from seqzoo.data.tokenizers import Tokenizer
from seqzoo.errors import UserError

PAIR_CORPORA = {  # functions that return `Pairs`; a plugin's `pair_corpora` adds to them
    "numbers": "seqzoo.data.made:numbers",
    "reverse": "seqzoo.data.made:reversals",
}
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")

_FORMAT = 3  # of the cached files: raise it when their content would change

Pairs = Rows  # of a sentence and its translation


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


@checked(corpus_or_files, twins_are_complete, lowercase_needs_files)
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
    if whole:
        pairs = read_pairs({**keys, "val_pairs": 0, "test_pairs": 0}).as_validation()
    else:
        pairs = read_pairs(keys)
    encoded = encode_pairs(
        pairs, existing, tokenizer=tokenizer, vocab_size=vocab_size, joint=joint_vocabulary
    )
    if existing:
        return encoded
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
    return Rows.of(name, note, *hold_out(name, parts, key=0, unit="pairs", **sizes))


def encode_pairs(
    pairs: Pairs,
    existing: Mapping[str, Tokenizer] = {},
    *,
    tokenizer: str,
    vocab_size: int,
    joint: bool = True,
) -> EncodedPairs:
    """Ids of all sentences, under one vocabulary of both sides of the train part, or one a side,
    unless there are `existing` ones.

    A character that the train part lacks is `<unk>` in a `char` vocabulary.
    """
    if existing:
        joint = "source_tokenizer" not in existing
    sources, targets = (
        {f"{part}.{side}": pairs.column(part, index) for part in PARTS}
        for index, side in enumerate(Sides._fields)
    )
    apart = {"source_tokenizer": sources, "tokenizer": targets}
    tokenizers, ids = encode(
        "pairs",
        {"format": _FORMAT, "sha256": pairs.sha256, "joint": joint},
        {"tokenizer": sources | targets} if joint else apart,
        existing,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        specials=SPECIALS,
    )
    return EncodedPairs(
        name=pairs.name,
        note=pairs.note,
        sha256=pairs.sha256,
        tokenizer=tokenizers["tokenizer"],
        source_tokenizer=tokenizers["tokenizer" if joint else "source_tokenizer"],
        references={part: targets[f"{part}.target"] for part in ("val", "test")},
        **{part: Sides(*(ids[f"{part}.{side}"] for side in Sides._fields)) for part in PARTS},
    )
