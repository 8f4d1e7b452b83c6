"""Parallel text that is made on the spot: numbers spelled out in two languages, and strings with
their reversals."""

import copy
import random
import string
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from num2words import CONVERTER_CLASSES

from seqzoo.data.cache import cached
from seqzoo.data.files import split_lines
from seqzoo.data.pairs import Pairs
from seqzoo.data.parts import PARTS, Row, held_out_size
from seqzoo.errors import UserError, unknown

_FORMAT = 3  # of the cached files: raise it when their content would change
_MIN_LIMIT, _MAX_LIMIT = 20, 10**18
_LETTERS = string.ascii_lowercase


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
    of them again, with every count of digits as likely.

    Raises:
        UserError: a language that num2words lacks, or in which it cannot spell a value.
    """
    for option, lang in (("source_lang", source_lang), ("target_lang", target_lang)):
        _check_language(f"task.{option}", lang)
    if not _MIN_LIMIT <= limit <= _MAX_LIMIT:
        raise UserError(f"task.limit ({limit}) must be from {_MIN_LIMIT} to 10**18: try 100000")
    n_val, n_test = held_out_size(limit, val_pairs), held_out_size(limit, test_pairs)

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
    return Pairs.of("numbers", note, *(_load_table(folder / f"{part}.tsv") for part in PARTS))


def reversals(
    *, longest: int, n_pairs: int, val_pairs: int, test_pairs: int, seed: int = 0
) -> Pairs:
    """Strings of letters and their reversals; deterministic.

    Every length up to `longest` is as likely, but that at most a tenth of all strings of a length
    is held out. A string that is held out is in no other part.
    """
    draw = random.Random(seed)

    def text() -> str:
        return "".join(draw.choices(_LETTERS, k=draw.randint(1, longest)))

    room = {n: len(_LETTERS) ** n // 10 for n in range(1, longest + 1)}
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
    return Pairs.of("reverse", note, *([(text, text[::-1]) for text in part] for part in parts))


def _of_every_size(draw: random.Random, limit: int, n: int, reserved: set[int]) -> list[int]:
    """Up to n values below `limit`, one digit as likely as two or ten; none reserved."""
    values = []
    for _ in range(n):
        digits = draw.randint(1, len(str(limit - 1)))
        values.append(draw.randrange(10 ** (digits - 1) - (digits == 1), min(10**digits, limit)))
    return [value for value in values if value not in reserved]


def _load_table(file: Path) -> list[Row]:
    rows = (line.partition("\t") for line in split_lines(file.read_text(encoding="utf-8")))
    return [(source, target) for source, _, target in rows]


def _check_language(option: str, lang: str) -> None:
    languages = [name for name in CONVERTER_CLASSES if name != "am"]  # it hangs on large values
    if lang not in languages:
        raise unknown(option, lang, languages)


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
            return str(converter.to_cardinal(value))
        except Exception as error:  # each language raises types of its own
            raise UserError(
                f"{option}: num2words cannot spell {value} in {lang!r} "
                f"({type(error).__name__}): lower task.limit or use another language"
            ) from None

    return spell
