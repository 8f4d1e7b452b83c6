"""A corpus that every machine has: the source code of Python's standard library."""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from seqzoo.data.corpora import Corpus
from seqzoo.data.files import size
from seqzoo.errors import UserError

_MAX_BYTES = 8_000_000
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "turtledemo"}


def python() -> Corpus:
    """The first 8 MB, by path, of the standard library's modules, without tests and demos.

    Raises:
        UserError: its source files are not installed.
    """
    root = Path(sysconfig.get_path("stdlib"))
    texts, n_bytes = [], 0
    for file in sorted(_module_files(root)):
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        n_bytes += len(text.encode()) + 1
        if n_bytes > _MAX_BYTES:
            break
        texts.append(text)
    if not texts:
        raise UserError(
            f"task.corpus=python: no source files in {root}: give a text file with task.path"
        )
    text = "\n".join(texts)
    note = f"{len(texts)} modules of the standard library of Python, {size(text)}"
    return Corpus("python", text, note)


def _module_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = set(subfolders) - _SKIPPED
        yield from (Path(folder, name) for name in names if name.endswith(".py"))
