"""A folder on disk for everything that is slow to make and depends on nothing but its key."""

import atexit
import functools
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path


def cached(kind: str, key: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """The folder `<cache root>/<kind>/<hash of key>/`, which `build` fills if it is not there.

    The folder is built under another name and renamed into place, so that no reader sees half of
    it and of two processes that build at once one wins and both use its result. A root that cannot
    be written is replaced by a temporary folder, which ends with the process.
    """
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"))
    place = Path(kind) / hashlib.sha256(canonical.encode()).hexdigest()[:16]
    folder = _cache_root() / place
    if folder.is_dir():
        return folder
    if not _can_write(folder.parent):
        folder = _process_root() / place
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        build(draft)
        _put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _put_in_place(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first, with the same content
            raise


def _cache_root() -> Path:
    if root := os.environ.get("SEQZOO_CACHE"):
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "seqzoo"


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@functools.cache
def _process_root() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="seqzoo-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
