"""Builds the kernels in C++ for this CPU, once, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
FLAGS = "-std=c++17 -O3 -march=native -fPIC -shared -fno-math-errno -fno-trapping-math".split()


def build() -> Path | None:
    """The library, built if it is not there; None without a compiler, or where it fails.

    Its name has the sources, the compiler and the CPU's instructions in it, so that another machine
    with the same home builds its own. Two processes may build at once: the file appears whole.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        _report(
            "no C++ compiler: recurrences run in torch's slower forms; install g++ to have them"
        )
        return None
    sources = sorted(SOURCES.glob("*.cpp"))
    texts = [path.read_bytes() for path in (*sources, *sorted(SOURCES.glob("*.h")))]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    key = hashlib.sha256(b"\0".join([*texts, version, " ".join(FLAGS).encode(), _cpu()]))
    path = _cache() / f"kernels-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    _report(f"building kernels for this CPU, once: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        for openmp in (["-fopenmp"], []):
            command = [compiler, *FLAGS, *openmp, "-o", str(fresh), *map(str, sources)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                os.replace(fresh, path)
                return path
    reason = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
    _report(f"kernels could not be built ({reason}): recurrences run in torch's slower forms")
    return None


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
