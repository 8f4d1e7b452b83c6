"""UTF-8 text files, their lines, and tables of two columns."""

import io
from pathlib import Path

from seqzoo.errors import UserError


def read_text(path: str, option: str, encoding_errors: str) -> str:
    """A UTF-8 file with newlines as `\\n`, without byte order mark.

    Args:
        option: the key that the path was given with, for messages.
        encoding_errors: `strict`, or `replace` to read U+FFFD for bytes that are not UTF-8.

    Raises:
        UserError: a file that is missing, cannot be read, is not UTF-8 or is empty.
    """
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


def split_lines(text: str) -> list[str]:
    """The lines of a text. Only `\\n` ends a line, while `str.splitlines` also cuts at U+2028."""
    return text.removesuffix("\n").split("\n") if text else []


def read_table(
    path: str, option: str, encoding_errors: str, columns: tuple[str, str]
) -> list[tuple[str, str]]:
    """The rows of a file with two columns that a tab separates.

    Args:
        columns: what they are called, for messages.

    Raises:
        UserError: as `read_text`, or a line that has not two columns.
    """
    rows = []
    text = read_text(path, option, encoding_errors)
    for number, line in enumerate(split_lines(text.rstrip("\n")), 1):
        first, *others = line.split("\t")
        if len(others) != 1:
            raise UserError(
                f"{option}: {path} has {len(others) + 1} column(s) in line {number}: write two, "
                + "<TAB>".join(columns)
            )
        rows.append((first, others[0]))
    return rows


def size(text: str) -> str:
    """The size of a text in UTF-8, for people."""
    n_bytes = len(text.encode())
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes:,} bytes"
