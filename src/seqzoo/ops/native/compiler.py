"""Builds the kernels in C++ for this CPU, once, into the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

SOURCES = Path(__file__).parent
FLAGS = "-std=c++17 -O3 -march=native -fPIC -shared -fno-math-errno -fno-trapping-math".split()
DAY = 24 * 60 * 60  # seconds


class CannotBuild(Exception):
    """There is no compiler, or it fails."""


def load() -> ctypes.CDLL | None:
    """The library, built if it is not there; None where it cannot be built or loaded, with the
    reason printed to stderr."""
    try:
        return ctypes.CDLL(str(build()))
    except CannotBuild as error:
        reason = str(error)
    except (OSError, RuntimeError) as error:  # of the file, its folder, or a home that is not there
        reason = f"{error}; set XDG_CACHE_HOME to another folder for them"
    _report(f"no kernels in C++ ({reason}): recurrences run in torch's slower forms")
    return None


def build() -> Path:
    """Where the library is, built if it is not there.

    Its name has the sources, the compiler and the CPU's instructions in it, so that another machine
    with the same home builds its own. Two processes may build at once: the file is renamed into
    place. A failed build is recorded beside the library and not tried again for a day. Libraries
    that were not used for 30 days are deleted by the next build.

    Raises:
        CannotBuild: there is no compiler, or it fails or has failed today.
        OSError, RuntimeError: there is no folder for it that can be written.
    """
    compiler = _compiler()
    sources = sorted(SOURCES.glob("*.cpp"))
    texts = [path.read_bytes() for path in (*sources, *sorted(SOURCES.glob("*.h")))]
    version = _run([*compiler, "--version"]).stdout.encode()
    key = hashlib.sha256(b"\0".join([*texts, version, " ".join(FLAGS).encode(), _cpu()]))
    path = _cache() / f"kernels-{key.hexdigest()[:16]}.so"
    if path.exists():
        with suppress(OSError):
            os.utime(path)  # the time of its last use
        return path
    failed = path.with_suffix(".failed")
    if failed.exists() and _age(failed) < DAY:
        reason = failed.read_text(encoding="utf-8")
        raise CannotBuild(f"{reason}; to try again before tomorrow, remove {failed}")
    _report(f"building kernels for this CPU, once: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # another process may do the same
        for old in path.parent.glob("kernels-*"):
            if _age(old) > 30 * DAY:
                old.unlink()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        for openmp in (["-fopenmp"], []):
            done = _run([*compiler, *FLAGS, *openmp, "-o", str(fresh), *map(str, sources)])
            if done.returncode == 0:
                os.replace(fresh, path)
                return path
    unsaid = f"status {done.returncode} and no message"
    error = next((line for line in done.stderr.splitlines() if "error" in line), unsaid)
    reason = f"{' '.join(compiler)} failed: {error}"
    failed.write_text(reason, encoding="utf-8")
    raise CannotBuild(reason)


def _compiler() -> list[str]:
    """The words that call g++: those of CXX, if it is set."""
    given = os.environ.get("CXX") or "g++"
    try:
        words = shlex.split(given)
    except ValueError as error:
        raise CannotBuild(f"CXX={given}: {error}") from None
    found = shutil.which(words[0]) if words else None
    if found is None:
        wrong = f"CXX={given}: no such program: correct it, or " if os.environ.get("CXX") else ""
        raise CannotBuild(f"no C++ compiler: {wrong}install g++")
    return [found, *words[1:]]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    english = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=english, check=False
    )


def _age(path: Path) -> float:
    """Seconds since a file was written or used."""
    return time.time() - path.stat().st_mtime


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "seqzoo"


def _cpu() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    first = dict(line.split(":", 1) for line in lines[:40] if ":" in line)
    return repr(sorted((k.strip(), v) for k, v in first.items() if k.strip() in KEYS)).encode()


KEYS = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")


def _report(text: str) -> None:
    print(f"seqzoo: {text}", file=sys.stderr, flush=True)
