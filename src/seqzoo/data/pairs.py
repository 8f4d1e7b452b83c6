"""Parallel text: numbers spelled out in two languages, strings and their reversals, files, or a
data set of the hub.

`read_pairs` gives pairs of sentences in three parts, which share no source unless files say so;
`encode_pairs` their ids under one vocabulary for both sides or one each.
"""

import copy
import hashlib
import inspect
import random
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from num2words import CONVERTER_CLASSES

from seqzoo.data.cache import cached
from seqzoo.data.corpora import load_hub, read_text, unknown_name
from seqzoo.data.tokenizers import Tokenizer, cut
from seqzoo.errors import UserError

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
PARTS = ("train", "val", "test")
_LETTERS = string.ascii_lowercase

Pair = tuple[str, str]

_FORMAT = 3  # of the cached files: raise it when their content would change
_HELD_OUT = 10  # validation and test are each at most one tenth of the corpus
_CORPORA = ("numbers", "reverse")
_HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, the name they go by and one line about them for people."""

    name: str
    note: str
    train: list[Pair]
    val: list[Pair]
    test: list[Pair]
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


def load(
    keys: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    source_tokenizer: Tokenizer | None = None,
    whole: bool = False,
) -> EncodedPairs:
    """What the task `translation` reads, from its configuration.

    Args:
        tokenizer: one made before, instead of one made for these pairs.
        source_tokenizer: the same for sources; None: they have no other.
        whole: hold nothing out: all pairs are `val`, and there is neither `train` nor `test`.

    Raises:
        UserError: files that are missing, are no text or do not match, or no pair that fits in
            `max_len` tokens.
    """
    wanted = inspect.signature(read_pairs).parameters
    held_out = {"val_pairs": 0, "test_pairs": 0} if whole else {}
    pairs = read_pairs(**{key: keys[key] for key in wanted} | held_out)
    if whole:
        every = pairs.train + pairs.val + pairs.test
        pairs = replace(pairs, train=[], val=every, test=[])
    if tokenizer is not None:
        both = source_tokenizer or tokenizer, tokenizer
        parts = {
            part: Sides(
                *(
                    one.encode_many(side)
                    for one, side in zip(both, _transpose(getattr(pairs, part)), strict=True)
                )
            )
            for part in PARTS
        }
        return EncodedPairs(
            pairs.name,
            pairs.note,
            pairs.sha256,
            tokenizer,
            both[0],
            references=_references(pairs),
            **parts,
        )
    encoded = encode_pairs(
        pairs,
        tokenizer=keys["tokenizer"],
        vocab_size=keys["vocab_size"],
        joint=keys["joint_vocabulary"],
    )
    shortest = min(len(s) + len(t) + 1 for s, t in zip(*encoded.train, strict=True))
    if shortest > keys["max_len"] and keys["long_pairs"] == "drop":
        raise UserError(
            f"task.max_len={keys['max_len']}: the shortest pair of {pairs.name} has "
            f"{shortest} tokens: give a larger task.max_len"
        )
    return encoded


def read_pairs(
    *,
    corpus: str | None = None,
    path: str | None = None,
    val_path: str | None = None,
    test_path: str | None = None,
    source: str | None = None,
    target: str | None = None,
    val_source: str | None = None,
    val_target: str | None = None,
    test_source: str | None = None,
    test_target: str | None = None,
    source_lang: str,
    target_lang: str,
    limit: int,
    n_pairs: int,
    longest: int,
    val_pairs: int,
    test_pairs: int,
    subset: str | None = None,
    encoding_errors: str = "strict",
    lowercase: bool = False,
) -> Pairs:
    """Pairs from files if some are given, else from the corpus; spelled numbers if there is none.

    `corpus`: "numbers" (with `limit` and `n_pairs`), "reverse" (with `longest` and `n_pairs`) or
    `owner/name` of the hub. `path`: a folder of train.LANG, val.LANG and test.LANG, or a file of
    `source<TAB>target` lines. `source` and `target`: two files, a sentence a line. A part without a
    file of its own (or a split of the hub) is held out of the train part, by source. Raises
    UserError for whatever cannot be read.
    """
    tables = {"path": path, "val_path": val_path, "test_path": test_path}
    twins = {
        "source": source,
        "target": target,
        "val_source": val_source,
        "val_target": val_target,
        "test_source": test_source,
        "test_target": test_target,
    }
    from_tables, from_twins = (any(files.values()) for files in (tables, twins))
    if corpus is not None and (from_tables or from_twins):
        raise UserError(f"task.corpus={corpus}, and files too, are given: give one")
    if from_tables and from_twins:
        raise UserError("task.path, and task.source with task.target, are both given: give one")
    if path is not None and Path(path).is_dir():
        name, note = Path(path).name, f"pairs of {path}"
        found = _files_of(path, source_lang, target_lang)
        parts = [_read_twins(prefix, found, encoding_errors) for prefix in ("", "val_", "test_")]
    elif from_tables:
        name, note = Path(_require(tables, "path")).name, f"pairs of {path}"
        parts = [_read_tsv(option, file, encoding_errors) for option, file in tables.items()]
    elif from_twins:
        name, note = Path(_require(twins, "source")).name, f"pairs of {source} and {target}"
        parts = [_read_twins(prefix, twins, encoding_errors) for prefix in ("", "val_", "test_")]
    elif lowercase and corpus in (None, *_CORPORA):
        raise UserError(
            f"task.lowercase=true: of files and hub data sets: task.corpus={corpus or 'numbers'} "
            "is as it is: leave it out"
        )
    elif corpus is None or corpus == "numbers":
        return numbers(
            source_lang=source_lang,
            target_lang=target_lang,
            limit=limit,
            n_pairs=n_pairs,
            val_pairs=val_pairs,
            test_pairs=test_pairs,
        )
    elif corpus == "reverse":
        return reversals(
            longest=longest, n_pairs=n_pairs, val_pairs=val_pairs, test_pairs=test_pairs
        )
    elif "/" in corpus:
        name, note = corpus, f"pairs of {corpus}"
        parts = _read_hub(corpus, subset, source_lang, target_lang)
    else:
        raise unknown_name("task.corpus", corpus, _CORPORA, "or owner/name of a hub data set")
    if lowercase:
        note += ", lower-cased"
        parts = [
            part and [(source.lower(), target.lower()) for source, target in part] for part in parts
        ]
    return _pairs(name, note, *_hold_out(name, parts, val_pairs, test_pairs))


def numbers(
    *,
    source_lang: str,
    target_lang: str,
    limit: int,
    n_pairs: int,
    val_pairs: int,
    test_pairs: int,
    seed: int = 0,
) -> Pairs:
    """Numbers below `limit` as num2words spells them in two languages; deterministic.

    Values are drawn uniformly, those of validation and test first (each at most a tenth of all
    values) and whatever `n_pairs` is; the train part has `n_pairs` of the others, or all if there
    are fewer. A uniform draw is nearly all long numbers, so the train part has a quarter more, some
    of them again, with every count of digits as likely. Raises UserError for a language that
    num2words has not or that cannot spell a value.
    """
    for option, lang in (("source_lang", source_lang), ("target_lang", target_lang)):
        _check_language(f"task.{option}", lang)
    if not 2 * _HELD_OUT <= limit <= 10**18:
        raise UserError(f"task.limit ({limit}) must be from {2 * _HELD_OUT} to 10**18: try 100000")
    if n_pairs < 1:
        raise UserError(f"task.n_pairs ({n_pairs}) must be at least 1: try 100000")
    n_val, n_test = _held_out_sizes(limit, val_pairs, test_pairs)

    def build(folder: Path) -> None:
        draw = random.Random(seed)
        held_out = draw.sample(range(limit), n_val + n_test)
        reserved = set(held_out)
        others = draw.sample(range(limit), min(limit, n_pairs + len(held_out)))
        others = [value for value in others if value not in reserved][:n_pairs]
        others += _of_every_size(draw, limit, len(others) // 4, reserved)
        spell_source = _speller("task.source_lang", source_lang, limit)
        spell_target = _speller("task.target_lang", target_lang, limit)
        for part, values in zip(PARTS, (others, held_out[:n_val], held_out[n_val:]), strict=True):
            lines = [f"{spell_source(value)}\t{spell_target(value)}\n" for value in values]
            (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")

    key = {
        "format": _FORMAT,
        "num2words": version("num2words"),
        "langs": [source_lang, target_lang],
        "limit": limit,
        "sizes": [n_pairs, n_val, n_test],
        "seed": seed,
    }
    folder = cached("numbers", key, build)
    note = f"numbers below {limit:,} spelled in {source_lang} and {target_lang}"
    return _pairs("numbers", note, *(_load_table(folder / f"{part}.tsv") for part in PARTS))


def reversals(
    *, longest: int, n_pairs: int, val_pairs: int, test_pairs: int, seed: int = 0
) -> Pairs:
    """Strings of letters and the same from the end; deterministic. Every length up to `longest` is
    as likely, but that at most a tenth of all strings of a length is held out; what is held out is
    in no other part."""
    draw = random.Random(seed)

    def text() -> str:
        return "".join(draw.choices(_LETTERS, k=draw.randint(1, longest)))

    room = {n: len(_LETTERS) ** n // _HELD_OUT for n in range(1, longest + 1)}
    wanted = min(val_pairs + test_pairs, sum(room.values()) // 2)
    held_out: dict[str, None] = {}  # in the order in which they were drawn
    while len(held_out) < wanted:
        one = text()
        if one not in held_out and room[len(one)]:
            held_out[one] = None
            room[len(one)] -= 1
    train = [one for one in (text() for _ in range(n_pairs)) if one not in held_out]
    n_val = wanted * val_pairs // max(1, val_pairs + test_pairs)
    note = f"strings of up to {longest} letters, and their reversals"
    parts = (train, list(held_out)[:n_val], list(held_out)[n_val:])
    return _pairs("reverse", note, *([(text, text[::-1]) for text in part] for part in parts))


def _of_every_size(draw: random.Random, limit: int, n: int, reserved: set[int]) -> list[int]:
    """Up to n values below `limit`, one digit as likely as two or ten; none reserved."""
    values = []
    for _ in range(n):
        digits = draw.randint(1, len(str(limit - 1)))
        values.append(draw.randrange(10 ** (digits - 1) - (digits == 1), min(10**digits, limit)))
    return [value for value in values if value not in reserved]


def encode_pairs(
    pairs: Pairs, *, tokenizer: str, vocab_size: int, joint: bool = True
) -> EncodedPairs:
    """Ids of all sentences, cached by content, under one vocabulary of both sides of the train
    part, or one a side.

    A character that the train part had not is `<unk>` in a `char` vocabulary.
    """

    def train(sentences: list[str]) -> Tokenizer:
        return Tokenizer.train(
            tokenizer, sentences, vocab_size=vocab_size, specials=SPECIALS, unknown="<unk>"
        )

    def build(folder: Path) -> None:
        sources, targets = _transpose(pairs.train)
        if joint:
            trained = dict.fromkeys(Sides._fields, train(sources + targets))
        else:
            trained = {"source": train(sources), "target": train(targets)}
            trained["source"].save(folder / "source_tokenizer.json")
        trained["target"].save(folder / "tokenizer.json")
        for part in PARTS:
            both_sides = _transpose(getattr(pairs, part))
            for side, sentences in zip(Sides._fields, both_sides, strict=True):
                ids = trained[side].encode_many(sentences)
                empty = trained[side].encode("")
                np.save(folder / f"{part}.{side}.npy", np.concatenate([empty, *ids]))
                np.save(folder / f"{part}.{side}.lengths.npy", np.array([len(i) for i in ids], int))

    def sides(part: str) -> Sides:
        return Sides(*(_load_sentences(folder, f"{part}.{side}") for side in Sides._fields))

    key = {
        "format": _FORMAT,
        "sha256": pairs.sha256,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size if tokenizer == "bpe" else 0,
        "joint": joint,
    }
    folder = cached("pairs", key, build)
    whole = Tokenizer.load(folder / "tokenizer.json")
    return EncodedPairs(
        name=pairs.name,
        note=pairs.note,
        sha256=pairs.sha256,
        tokenizer=whole,
        source_tokenizer=whole if joint else Tokenizer.load(folder / "source_tokenizer.json"),
        train=sides("train"),
        val=sides("val"),
        test=sides("test"),
        references=_references(pairs),
    )


def _references(pairs: Pairs) -> dict[str, list[str]]:
    return {part: [target for _, target in getattr(pairs, part)] for part in ("val", "test")}


def _pairs(name: str, note: str, train: list[Pair], val: list[Pair], test: list[Pair]) -> Pairs:
    digest = hashlib.sha256()
    for part in (train, val, test):
        lines = "".join(f"{source}\t{target}\n" for source, target in part)
        digest.update(f"{len(part)}\n{lines}".encode())
    note = f"{len(train):,} + {len(val):,} + {len(test):,} {note}"
    return Pairs(name, note, train, val, test, digest.hexdigest())


def _transpose(part: list[Pair]) -> tuple[list[str], list[str]]:
    return [source for source, _ in part], [target for _, target in part]


def _load_table(file: Path) -> list[Pair]:
    rows = (line.partition("\t") for line in _split_lines(file.read_text(encoding="utf-8")))
    return [(source, target) for source, _, target in rows]


def _load_sentences(folder: Path, name: str) -> list[np.ndarray]:
    lengths = np.load(folder / f"{name}.lengths.npy")
    return cut(np.load(folder / f"{name}.npy"), lengths.tolist())


def _split_lines(text: str) -> list[str]:
    """Lines of a file: only `\\n` ends one, while `str.splitlines` also cuts at U+2028."""
    return text.removesuffix("\n").split("\n") if text else []


def _require(files: Mapping[str, str | None], needed: str) -> str:
    if path := files[needed]:
        return path
    given = next(option for option, file in files.items() if file)
    raise UserError(f"task.{given} is given without task.{needed}: give both")


def _read_tsv(option: str, path: str | None, encoding_errors: str) -> list[Pair] | None:
    if path is None:
        return None
    pairs = []
    text = read_text(path, f"task.{option}", encoding_errors)
    for number, line in enumerate(_split_lines(text.rstrip("\n")), 1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise UserError(
                f"task.{option}: {path} has {len(columns)} column(s) in line {number}: write two, "
                "source<TAB>target"
            )
        pairs.append((columns[0], columns[1]))
    return pairs


def _read_twins(
    prefix: str, files: Mapping[str, str | None], encoding_errors: str
) -> list[Pair] | None:
    twins = {option: files[option] for option in (f"{prefix}source", f"{prefix}target")}
    if not any(twins.values()):
        return None
    sources, targets = (
        _split_lines(read_text(path, f"task.{option}", encoding_errors))
        for option, path in ((option, _require(twins, option)) for option in twins)
    )
    if len(sources) != len(targets):
        raise UserError(
            f"task.{prefix}source has {len(sources)} lines and task.{prefix}target has "
            f"{len(targets)}: give files in which line n translates line n"
        )
    return list(zip(sources, targets, strict=True))


def _files_of(folder: str, source_lang: str, target_lang: str) -> dict[str, str | None]:
    """The files of a folder such as `train.en`, `val.en`, `test_2016.en`, by the keys of twins."""
    found: dict[str, str | None] = {}
    for prefix, begins in {"": ("train",), "val_": ("val", "dev"), "test_": ("test",)}.items():
        for side, lang in (("source", source_lang), ("target", target_lang)):
            files = [str(f) for begin in begins for f in Path(folder).glob(f"{begin}*.{lang}")]
            if len(files) > 1 or not (files or prefix):
                raise UserError(
                    f"task.path={folder}: {len(files)} files {begins[0]}*.{lang}, where one is "
                    f"needed: give task.{prefix}source and task.{prefix}target, or "
                    f"task.source_lang and task.target_lang ({source_lang}, {target_lang})"
                )
            found[f"{prefix}{side}"] = files[0] if files else None
        if bool(found[f"{prefix}source"]) != bool(found[f"{prefix}target"]):
            raise UserError(
                f"task.path={folder}: {begins[0]}* in one language only ({source_lang}, "
                f"{target_lang}): put the other beside it, or take it away"
            )
    return found


def _read_hub(
    name: str, subset: str | None, source_lang: str, target_lang: str
) -> list[list[Pair] | None]:
    splits = load_hub(name, subset, instead="give a file with task.path")
    if "train" not in splits:
        names = ", ".join(splits)
        raise UserError(f"task.corpus: {name} has no split train, only {names}: try another")

    def read(split: str) -> list[Pair] | None:
        if split not in splits:
            return None
        columns = splits[split].features
        if "translation" in columns:
            rows: Iterable[Mapping[str, str]] = splits[split]["translation"]
            languages = getattr(columns["translation"], "languages", columns["translation"])
        else:
            rows, languages = splits[split], columns
        for option, lang in (("source_lang", source_lang), ("target_lang", target_lang)):
            if lang not in languages:
                raise unknown_name(f"task.{option}", lang, tuple(languages), f"as {name} has them")
        return [(row[source_lang], row[target_lang]) for row in rows]

    return [read(_HUB_SPLITS[part]) for part in PARTS]


def _hold_out(
    name: str, parts: Sequence[list[Pair] | None], val_pairs: int, test_pairs: int
) -> list[list[Pair]]:
    """All three parts: a missing one is taken out of train, whole sources in order of hash."""
    train, *others = parts
    assert train is not None
    sizes = _held_out_sizes(len(train), val_pairs, test_pairs)
    counts = Counter(source for source, _ in train)
    order = sorted(counts, key=lambda source: hashlib.sha256(source.encode()).digest())
    complete = [train]
    for part, given, wanted, size in zip(
        PARTS[1:], others, (val_pairs, test_pairs), sizes, strict=True
    ):
        if given is None:
            chosen = _choose(order, counts, size)
            if wanted and not chosen:
                raise UserError(
                    f"task.{part}_pairs: {name} has too few pairs ({len(train)}) to hold some out: "
                    f"give 20 or more with different sources, or a file for {part}"
                )
            given = [pair for pair in complete[0] if pair[0] in chosen]
            complete[0] = [pair for pair in complete[0] if pair[0] not in chosen]
            order = [source for source in order if source not in chosen]
        complete.append(given)
    return complete


def _choose(order: Iterable[str], counts: Mapping[str, int], room: int) -> set[str]:
    """The first sources of `order` whose pairs fit into `room`, passing over those that do not."""
    chosen = set()
    for source in order:
        if counts[source] <= room:
            chosen.add(source)
            room -= counts[source]
    return chosen


def _held_out_sizes(total: int, val_pairs: int, test_pairs: int) -> tuple[int, int]:
    for option, wanted in (("val_pairs", val_pairs), ("test_pairs", test_pairs)):
        if wanted < 0:
            raise UserError(f"task.{option} ({wanted}) must not be negative: try 1000")
    return min(val_pairs, total // _HELD_OUT), min(test_pairs, total // _HELD_OUT)


def _check_language(option: str, lang: str) -> None:
    languages = [name for name in CONVERTER_CLASSES if name != "am"]  # it hangs on large values
    if lang not in languages:
        raise unknown_name(option, lang, languages)


def _speller(option: str, lang: str, limit: int) -> Callable[[int], str]:
    """num2words for values below `limit`, five times as fast.

    Its converters look at each of their number words for each value, the largest first: a copy
    without those above the limit spells the same.
    """
    converter = copy.copy(CONVERTER_CLASSES[lang])
    if hasattr(converter, "cards"):
        words = converter.cards.items()
        converter.cards = type(converter.cards)((n, word) for n, word in words if n <= limit)

    def spell(value: int) -> str:
        try:
            return converter.to_cardinal(value)
        except Exception as error:  # the languages raise what they like
            raise UserError(
                f"{option}: num2words cannot spell {value} in {lang!r} "
                f"({type(error).__name__}): lower task.limit or use another language"
            ) from None

    return spell
