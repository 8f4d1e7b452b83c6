"""Where pairs are read from: tables, two files with a sentence a line, a folder of such files, or a
data set of the hub. Each gives three parts; None stands for a part that there is not."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seqzoo.data.files import read_table, read_text, split_lines
from seqzoo.data.hub import read_splits
from seqzoo.data.parts import Row
from seqzoo.errors import UserError, unknown

Part = list[Row] | None
Paths = Mapping[str, str | None]  # by the key that they were given with, without `task.`
PREFIXES = ("", "val_", "test_")  # of those keys, in the order of the parts


def read_tables(paths: Paths, encoding_errors: str) -> list[Part]:
    """Files with `source<TAB>target` in each line: `path`, `val_path`, `test_path`."""
    columns = ("source", "target")
    return [
        read_table(path, f"task.{option}", encoding_errors, columns) if path else None
        for option, path in paths.items()
    ]


def read_twins(paths: Paths, encoding_errors: str) -> list[Part]:
    """Files in pairs, with a sentence a line: `source` and `target`, `val_source` and so on."""
    return [_twins(prefix, paths, encoding_errors) for prefix in PREFIXES]


def _twins(prefix: str, paths: Paths, encoding_errors: str) -> Part:
    options = (f"{prefix}source", f"{prefix}target")
    given = {option: path for option in options if (path := paths[option])}
    if len(given) < 2:
        return None
    sources, targets = (
        split_lines(read_text(path, f"task.{option}", encoding_errors))
        for option, path in given.items()
    )
    if len(sources) != len(targets):
        raise UserError(
            f"task.{prefix}source has {len(sources)} lines and task.{prefix}target has "
            f"{len(targets)}: give files in which line n translates line n"
        )
    return list(zip(sources, targets, strict=True))


def files_of(folder: str, source_lang: str, target_lang: str) -> dict[str, str | None]:
    """The files of a folder such as `train.en`, `val.en`, `test_2016.en`, by the keys of twins.

    Raises:
        UserError: none or several that could be meant, or one language only.
    """
    found: dict[str, str | None] = {}
    for prefix, begins in zip(PREFIXES, (("train",), ("val", "dev"), ("test",)), strict=True):
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


def read_hub(name: str, subset: str | None, source_lang: str, target_lang: str) -> list[Part]:
    """A data set with a column a language, or a column `translation` with both.

    Raises:
        UserError: a data set that cannot be loaded, or lacks a language.
    """

    def read(dataset: Any) -> list[Row]:
        columns = dataset.features
        if "translation" in columns:
            rows: Iterable[Mapping[str, str]] = dataset["translation"]
            languages = getattr(columns["translation"], "languages", columns["translation"])
        else:
            rows, languages = dataset, columns
        for option, lang in (("source_lang", source_lang), ("target_lang", target_lang)):
            if lang not in languages:
                raise unknown(f"task.{option}", lang, tuple(languages), f", as {name} has them")
        return [(row[source_lang], row[target_lang]) for row in rows]

    return read_splits(name, subset, read)
